"""RMSNorm, alone or after the addition of the residual stream: one pass over memory forward, one backward.

B sequences, L tokens, D d_model, N = B x L.
"""

from typing import Any

import torch
from torch import Tensor

from megaswitch.ops.library import Kernel
from megaswitch.ops.reference.rms_norm import EPSILON
from megaswitch.utils.precision import at_least_float32


def _forward_shapes(x: Tensor, y: Tensor | None, w: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    rstd = x.new_empty(x.shape[:-1].numel(), dtype=at_least_float32(x.dtype))
    return x.new_empty(0 if y is None else x.shape), x.new_empty(x.shape), rstd


def _backward_shapes(
    grad: Tensor, grad_total: Tensor | None, x: Tensor, w: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[-1], dtype=rstd.dtype)


KERNELS = (
    Kernel(
        "add_rms_norm_forward",
        "(Tensor x, Tensor? y, Tensor w, float eps) -> (Tensor, Tensor, Tensor)",
        _forward_shapes,
    ),
    Kernel(
        "rms_norm_backward",
        "(Tensor grad, Tensor? grad_total, Tensor x, Tensor w, Tensor rstd) -> (Tensor, Tensor)",
        _backward_shapes,
    ),
)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, w_D: Tensor, kernels: Any) -> Tensor:
        _, normed, rstd = kernels.add_rms_norm_forward(x_BLD, None, w_D, EPSILON)
        ctx.save_for_backward(x_BLD, w_D, rstd)
        ctx.kernels = kernels
        out: Tensor = normed
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x_BLD, w_D, rstd = ctx.saved_tensors
        dx, dw = ctx.kernels.rms_norm_backward(grads[0], None, x_BLD, w_D, rstd)
        return dx, dw.to(w_D.dtype), None


class _AddRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, y_BLD: Tensor, w_D: Tensor, kernels: Any) -> tuple[Tensor, Tensor]:
        total, normed, rstd = kernels.add_rms_norm_forward(x_BLD, y_BLD, w_D, EPSILON)
        ctx.save_for_backward(total, w_D, rstd)
        ctx.kernels = kernels
        return total, normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        total, w_D, rstd = ctx.saved_tensors
        dx, dw = ctx.kernels.rms_norm_backward(grads[1], grads[0], total, w_D, rstd)
        return dx, dx, dw.to(w_D.dtype), None


def rms_norm(kernels: Any, x_BLD: Tensor, w_D: Tensor) -> Tensor:
    """`ops.reference.rms_norm.rms_norm` by these kernels."""
    out: Tensor = _RmsNorm.apply(x_BLD, w_D, kernels)  # type: ignore[no-untyped-call]
    return out


def add_rms_norm(kernels: Any, x_BLD: Tensor, y_BLD: Tensor, w_D: Tensor) -> tuple[Tensor, Tensor]:
    """`ops.reference.rms_norm.add_rms_norm` by these kernels."""
    out: tuple[Tensor, Tensor] = _AddRmsNorm.apply(x_BLD, y_BLD, w_D, kernels)  # type: ignore[no-untyped-call]
    return out
