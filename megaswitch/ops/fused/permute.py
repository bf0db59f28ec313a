"""Tokens to the order of experts and back in one pass each way, with no table of assignments between. Taking rows is
torch's own, which no kernel here beats.

T tokens, K choices a token, A = T x K assignments, N kept ones, D width.
"""

from typing import Any

import torch
from torch import Tensor

from megaswitch.ops.library import Kernel
from megaswitch.ops.reference import permute as reference


def _collect_shapes(rows: Tensor, gate: Tensor | None, place: Tensor, choices: int) -> Tensor:
    return rows.new_empty(place.shape[0] // choices, rows.shape[1])


def _backward_shapes(grad: Tensor, rows: Tensor, gate: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(gate)


KERNELS = (
    Kernel("collect_rows", "(Tensor rows, Tensor? gate, Tensor place, int choices) -> Tensor", _collect_shapes),
    Kernel(
        "collect_rows_backward",
        "(Tensor grad, Tensor rows, Tensor gate, Tensor place) -> (Tensor, Tensor)",
        _backward_shapes,
    ),
)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, kept_N: Tensor, place_A: Tensor, kernels: Any) -> Tensor:
        ctx.save_for_backward(place_A)
        ctx.kernels, ctx.choices = kernels, max(1, place_A.shape[0] // max(1, x_TD.shape[0]))
        return reference.permute(x_TD, kept_N, place_A)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (place_A,) = ctx.saved_tensors
        return ctx.kernels.collect_rows(grads[0], None, place_A, ctx.choices), None, None, None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, gate_TK: Tensor, place_A: Tensor, kernels: Any) -> Tensor:
        ctx.save_for_backward(rows_ND, gate_TK, place_A)
        ctx.kernels = kernels
        out: Tensor = kernels.collect_rows(rows_ND, gate_TK, place_A, gate_TK.shape[1])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_rows, d_gate = ctx.kernels.collect_rows_backward(grads[0], *ctx.saved_tensors)
        return d_rows, d_gate, None, None


def permute(kernels: Any, x_TD: Tensor, kept_N: Tensor, place_A: Tensor) -> Tensor:
    """`ops.reference.permute.permute` by these kernels."""
    out: Tensor = _Permute.apply(x_TD, kept_N, place_A, kernels)  # type: ignore[no-untyped-call]
    return out


def unpermute(kernels: Any, rows_ND: Tensor, gate_TK: Tensor, kept_N: Tensor, place_A: Tensor) -> Tensor:
    """`ops.reference.permute.unpermute` by these kernels, which have no need of `kept_N`."""
    del kept_N
    out: Tensor = _Unpermute.apply(rows_ND, gate_TK.to(rows_ND.dtype), place_A, kernels)  # type: ignore[no-untyped-call]
    return out
