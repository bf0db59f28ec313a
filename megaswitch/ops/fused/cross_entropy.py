"""Cross-entropy's two passes over logits: one for greatest and sum together, one that gives the gradient.

N tokens, V this part of the vocabulary.
"""

from typing import Any

from torch import Tensor

from megaswitch.ops.library import Kernel
from megaswitch.ops.reference.cross_entropy import Statistics
from megaswitch.utils.precision import at_least_float32


def _statistics_shapes(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    one = logits.new_empty(logits.shape[0], dtype=at_least_float32(logits.dtype))
    return one, one.new_empty(one.shape), one.new_empty(one.shape)


def _gradient_shapes(
    logits: Tensor, target: Tensor, log_z: Tensor, grad: Tensor, z_loss: float, into: Tensor
) -> None:
    return None


KERNELS = (
    Kernel(
        "cross_entropy_statistics", "(Tensor logits, Tensor target) -> (Tensor, Tensor, Tensor)", _statistics_shapes
    ),
    Kernel(
        "cross_entropy_gradient",
        "(Tensor logits, Tensor target, Tensor log_z, Tensor grad, float z_loss, Tensor(a!) into) -> ()",
        _gradient_shapes,
    ),
)


def cross_entropy_statistics(kernels: Any, logits_NV: Tensor, target_N: Tensor) -> Statistics:
    """`ops.reference.cross_entropy.cross_entropy_statistics` by these kernels."""
    return Statistics(*kernels.cross_entropy_statistics(logits_NV, target_N))


def cross_entropy_gradient(
    kernels: Any, logits_NV: Tensor, target_N: Tensor, log_z_N: Tensor, grad_N: Tensor, z_loss: float, into_NV: Tensor
) -> None:
    """`ops.reference.cross_entropy.cross_entropy_gradient` by these kernels."""
    kernels.cross_entropy_gradient(logits_NV, target_N, log_z_N, grad_N, z_loss, into_NV)
