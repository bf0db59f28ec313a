"""Dropout and jitter by the stateless generator in one pass; the backward draws the same numbers again, so that only
the rows' states are kept.

N rows, F features.
"""

from typing import Any

import torch
from torch import Tensor

from megaswitch.ops.library import Kernel


def _scaled_shapes(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _uniform_shapes(states: Tensor, first_feature: int, width: int) -> Tensor:
    return states.new_empty((states.shape[0], width), dtype=torch.float32)


KERNELS = (
    Kernel("dropout", "(Tensor x, Tensor states, float rate, int first_feature) -> Tensor", _scaled_shapes),
    Kernel("jitter", "(Tensor x, Tensor states, float size) -> Tensor", _scaled_shapes),
    Kernel("features_uniform", "(Tensor states, int first_feature, int width) -> Tensor", _uniform_shapes),
)


class _Scaled(torch.autograd.Function):
    """A kernel that multiplies each number by one that is drawn, which in the backward it does to the gradient."""

    @staticmethod
    def forward(ctx: Any, x_NF: Tensor, states_N: Tensor, kernel: Any, numbers: tuple[float, ...]) -> Tensor:
        ctx.save_for_backward(states_N)
        ctx.kernel, ctx.numbers = kernel, numbers
        out: Tensor = kernel(x_NF, states_N, *numbers)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (states_N,) = ctx.saved_tensors
        return ctx.kernel(grads[0], states_N, *ctx.numbers), None, None, None


def dropout(kernels: Any, x_NF: Tensor, states_N: Tensor, rate: float, first_feature: int) -> Tensor:
    """`ops.reference.dropout.dropout` by these kernels."""
    out: Tensor = _Scaled.apply(x_NF, states_N, kernels.dropout, (rate, first_feature))  # type: ignore[no-untyped-call]
    return out


def jitter(kernels: Any, x_NF: Tensor, states_N: Tensor, size: float) -> Tensor:
    """`ops.reference.dropout.jitter` by these kernels."""
    out: Tensor = _Scaled.apply(x_NF, states_N, kernels.jitter, (size,))  # type: ignore[no-untyped-call]
    return out


def features_uniform(kernels: Any, states_N: Tensor, first_feature: int, width: int) -> Tensor:
    """`ops.reference.dropout.features_uniform` by these kernels."""
    out: Tensor = kernels.features_uniform(states_N, first_feature, width)
    return out
