"""The gradients of GEGLU in one pass, in the place of the products that they are of: nothing is kept but what the
products gave, and nothing is new in the backward. Forward it is in the products: `products.py`.
"""

from torch import Tensor

from megaswitch.ops.library import Kernel


def _gradient_shapes(gate: Tensor, x: Tensor, grad: Tensor) -> None:
    return None


KERNELS = (Kernel("geglu_gradient_", "(Tensor(a!) gate, Tensor(b!) x, Tensor grad) -> ()", _gradient_shapes),)
