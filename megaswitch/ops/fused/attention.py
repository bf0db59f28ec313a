"""Attention block by block: nothing of the size of the weights [B, H, Q, M] is in memory, forward or backward.

Kept for the backward are what goes in, what comes out, and two numbers a query: its greatest logit and the inverse of
its sum of exponentials (the logarithm of their sum would lose the latter where a query sees no key and the former is
very low). The backward computes the logits again: two products forward and five backward, each counted over all pairs
of positions as torch counts its own.

B sequences, Q queries, M keys, H heads, K width of a head, R = Q + M - 1 distances.
"""

from typing import Any

import torch
from torch import Tensor

from megaswitch.ops.bias import Bias, Drop
from megaswitch.ops.library import Kernel
from megaswitch.utils.precision import at_least_float32

_OPTIONS = (
    "Tensor? by_distance, Tensor? real, Tensor? of_queries, Tensor? of_keys, bool causal, Tensor? states, float rate"
)


def _forward_shapes(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    batch, queries, heads, _ = q.shape
    stats = q.new_empty(2, batch, heads, queries, dtype=at_least_float32(q.dtype))
    return q.new_empty(q.shape), stats


def _backward_shapes(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, stats: Tensor, by_distance: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    distances = stats.new_empty(0 if by_distance is None else q.shape[2], q.shape[1] + k.shape[1] - 1)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), distances


def _product(q: Tensor, k: Tensor) -> int:
    """FLOPs of one product over all pairs of positions."""
    return 2 * q.numel() * k.shape[1]


def _forward_flops(q: Tensor, k: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _product(q, k)


def _backward_flops(grad: Tensor, q: Tensor, k: Tensor, *_: Any, **__: Any) -> int:
    return 5 * _product(q, k)


KERNELS = (
    Kernel(
        "attention_forward",
        f"(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> (Tensor, Tensor)",
        _forward_shapes,
        _forward_flops,
    ),
    Kernel(
        "attention_backward",
        f"(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor stats, {_OPTIONS})"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        _backward_shapes,
        _backward_flops,
    ),
)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        by_distance: Tensor | None,
        bias: Bias,
        drop: Drop | None,
        kernels: Any,
    ) -> Tensor:
        of_queries, of_keys = bias.segments or (None, None)
        states, rate = (None, 0.0) if drop is None else (drop.states_BHQ, drop.rate)
        masks = (by_distance, bias.real_BM, of_queries, of_keys)
        out, stats = kernels.attention_forward(q, k, v, *masks, bias.causal, states, rate)
        ctx.save_for_backward(q, k, v, out, stats, *masks, states)
        ctx.causal, ctx.rate, ctx.kernels = bias.causal, rate, kernels
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *saved, states = ctx.saved_tensors
        dq, dk, dv, distances = ctx.kernels.attention_backward(grads[0], *saved, ctx.causal, states, ctx.rate)
        return dq, dk, dv, None if saved[5] is None else distances, None, None, None


def attention(kernels: Any, q_BQHK: Tensor, k_BMHK: Tensor, v_BMHK: Tensor, bias: Bias, drop: Drop | None) -> Tensor:
    """`ops.reference.attention.attention` by these kernels."""
    leaves = (q_BQHK, k_BMHK, v_BMHK, bias.by_distance_HR)
    out: Tensor = _Attention.apply(*leaves, bias, drop, kernels)  # type: ignore[no-untyped-call]
    return out
