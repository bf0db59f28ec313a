"""Root-mean-square normalisation (T5: no mean, no bias)."""

import torch
from torch import Tensor

from megaswitch.utils.precision import widen

EPSILON = 1e-6


def rms_norm(x_BLD: Tensor, w_D: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + 1e-6) in at least float32, cast to x's dtype, times w in that type."""
    wide = widen(x_BLD)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
    return normed.to(x_BLD.dtype) * w_D.to(x_BLD.dtype)


def add_rms_norm(x_BLD: Tensor, y_BLD: Tensor, w_D: Tensor) -> tuple[Tensor, Tensor]:
    """The residual stream x + y, and its norm."""
    total_BLD = x_BLD + y_BLD
    return total_BLD, rms_norm(total_BLD, w_D)
