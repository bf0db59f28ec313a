"""GEGLU and its gradients in one pass each: nothing is kept but what the products gave.

M numbers.
"""

import torch
from torch import Tensor

from megaswitch.ops.library import Kernel


def _shapes(gate: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _backward_shapes(grad: Tensor, gate: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gate), torch.empty_like(x)


KERNELS = (
    Kernel("geglu", "(Tensor gate, Tensor x) -> Tensor", _shapes),
    Kernel("geglu_backward", "(Tensor grad, Tensor gate, Tensor x) -> (Tensor, Tensor)", _backward_shapes),
)
