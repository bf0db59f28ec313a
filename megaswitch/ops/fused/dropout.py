"""Dropout by the stateless generator in one pass; the backward draws the same numbers again, so that only the rows'
states are kept.

N rows, F features.
"""

from typing import Any

import torch
from torch import Tensor

from megaswitch.ops.library import Kernel


def _dropout_shapes(x: Tensor, states: Tensor, rate: float, first_feature: int) -> Tensor:
    return x.new_empty(x.shape)


def _uniform_shapes(states: Tensor, first_feature: int, width: int) -> Tensor:
    return states.new_empty((states.shape[0], width), dtype=torch.float32)


KERNELS = (
    Kernel("dropout", "(Tensor x, Tensor states, float rate, int first_feature) -> Tensor", _dropout_shapes),
    Kernel("features_uniform", "(Tensor states, int first_feature, int width) -> Tensor", _uniform_shapes),
)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NF: Tensor, states_N: Tensor, rate: float, first_feature: int, kernels: Any) -> Tensor:
        ctx.save_for_backward(states_N)
        ctx.rate, ctx.first_feature, ctx.kernels = rate, first_feature, kernels
        out: Tensor = kernels.dropout(x_NF, states_N, rate, first_feature)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (states_N,) = ctx.saved_tensors
        return ctx.kernels.dropout(grads[0], states_N, ctx.rate, ctx.first_feature), None, None, None, None


def dropout(kernels: Any, x_NF: Tensor, states_N: Tensor, rate: float, first_feature: int) -> Tensor:
    """`ops.reference.dropout.dropout` by these kernels."""
    out: Tensor = _Dropout.apply(x_NF, states_N, rate, first_feature, kernels)  # type: ignore[no-untyped-call]
    return out


def features_uniform(kernels: Any, states_N: Tensor, first_feature: int, width: int) -> Tensor:
    """`ops.reference.dropout.features_uniform` by these kernels."""
    out: Tensor = kernels.features_uniform(states_N, first_feature, width)
    return out
