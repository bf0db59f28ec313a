"""Attention with biases by distance, tile by tile: the kernels of `ops/fused/attention.py` for the GPU.

A program has N queries (or keys) of one sequence and head and passes over tiles of N keys (or queries). Forward, in
bfloat16 and at width 64, a tile of N = 64 has two products of together 1 MFLOP, 140 ns of an H100 multiprocessor's
peak; its 4,096 exponentials take 145 ns at 16 a clock; it reads 16 KiB of keys and values, 50 ns of its share of the
second cache's 5.5 TB/s. So memory bounds nothing and larger tiles would gain nothing: 64 x 64 logits and as much of the
result are 64 registers a thread of 4 warps. The backward holds four such tiles and has N = 32, so that nothing spills;
types of 4 bytes and more (products in three passes of TF32) have half the N of either. Biases are read from a vector of
R numbers that stays in the nearest cache, by a warp from 32 places side by side.

Sums have a fixed order: one pass makes the queries' gradient and another those of keys and values, for which logits and
the weights' gradients are computed twice, seven products where five would do with sums in any order. Gradients of
distances are summed along a tile's diagonals, into a vector for each block of queries, and then over these.

B sequences, Q queries, M keys, H heads, K width of a head, R = Q + M - 1 distances, N width of a tile.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from megaswitch.ops.triton.dot import dot
from megaswitch.ops.triton.random import drawn, threshold
from megaswitch.ops.triton.tune import block, tuned
from megaswitch.utils.precision import at_least_float32


@triton.jit
def _place(H, Q, M, K):
    """This program's sequence, head, both as one number, how far rows lie apart, where queries and where keys begin."""
    item, row = tl.program_id(1).to(tl.int64), H * K
    b, h = item // H, item % H
    return b, h, item, row, (b * Q * H + h) * K, (b * M * H + h) * K


@triton.jit
def _masks(distances, real, of_queries, of_keys, b, h, Q, M):
    """What is added to the logits of this program's sequence and head."""
    if distances is not None:
        distances += h * (Q + M - 1)
    if real is not None:
        real += b * M
    if of_keys is not None:
        of_queries += b * Q
        of_keys += b * M
    return distances, real, of_queries, of_keys


@triton.jit
def _end(Q, M, N: tl.constexpr, causal: tl.constexpr):
    """Where the keys end that this program's queries see."""
    end = M
    if causal:
        end = tl.minimum(M, (tl.program_id(0) + 1) * N + M - Q)
    return end


@triton.jit
def _kept(states, item, q, m, Q, threshold: tl.constexpr):
    """[q, m]: whether dropout lets a weight through."""
    return drawn(states + item * Q, q, Q, m.to(tl.int64)) >= threshold


@triton.jit
def _rows(x, at, count, row, K, width: tl.constexpr):
    """Rows `at` of `count`, `row` numbers apart, as [at, width] with zeros beyond K."""
    k = tl.arange(0, width)
    return tl.load(x + at[:, None] * row + k[None, :], mask=(at < count)[:, None] & (k < K)[None, :], other=0.0)


@triton.jit
def _store(x, value, at, count, row, K, width: tl.constexpr):
    k = tl.arange(0, width)
    inside = (at < count)[:, None] & (k < K)[None, :]
    tl.store(x + at[:, None] * row + k[None, :], value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _logits(left, right, q, m, masks, Q, M, causal: tl.constexpr, low: tl.constexpr):
    """[q, m] with all that is added; keys that are not real or of another segment get a very low number, and there
    are none after the query."""
    distances, real, of_queries, of_keys = masks
    s = dot(left, tl.trans(right))
    there = (m < M)[None, :]
    if causal:
        there = there & (m[None, :] <= q[:, None] + M - Q)
    if distances is not None:
        inside = (q < Q)[:, None] & (m < M)[None, :]
        s += tl.load(distances + m[None, :] - q[:, None] + Q - 1, mask=inside, other=0.0)
    if of_keys is not None:
        own, theirs = tl.load(of_queries + q, mask=q < Q, other=0), tl.load(of_keys + m, mask=m < M, other=0)
        seen = own[:, None] == theirs[None, :]
        if real is not None:
            seen = seen & (tl.load(real + m, mask=m < M, other=0) != 0)[None, :]
        s += tl.where(seen, 0.0, low)
    elif real is not None:
        s += tl.where(tl.load(real + m, mask=m < M, other=0) != 0, 0.0, low)[None, :]
    return tl.where(there, s, float("-inf"))


@tuned([4, 8], ["width"])
@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, distances, real, of_queries, of_keys, states, out_ptr, stats_ptr, H, Q, M, K,
    causal: tl.constexpr, low: tl.constexpr, threshold: tl.constexpr, scale: tl.constexpr,
    width: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    q = tl.program_id(0) * N + tl.arange(0, N)
    b, h, item, row, of_q, of_k = _place(H, Q, M, K)
    masks = _masks(distances, real, of_queries, of_keys, b, h, Q, M)
    left = _rows(q_ptr + of_q, q, Q, row, K, width)
    W: tl.constexpr = stats_ptr.dtype.element_ty
    most = tl.full([N], float("-inf"), W)
    total = tl.zeros([N], W)
    result = tl.zeros([N, width], W)
    end = _end(Q, M, N, causal)
    for first in range(0, end, N):
        m = first + tl.arange(0, N)
        right = _rows(k_ptr + of_k, m, M, row, K, width)
        s = _logits(left, right, q, m, masks, Q, M, causal, low)
        top = tl.maximum(most, tl.max(s, 1))
        p = tl.exp(s - top[:, None])
        before = tl.exp(most - top)
        total = total * before + tl.sum(p, 1)
        if states is not None:
            p = tl.where(_kept(states, item, q, m, Q, threshold), p, 0.0)
        values = _rows(v_ptr + of_k, m, M, row, K, width)
        result = result * before[:, None] + dot(p.to(values.dtype), values)
        most = top
    inverse = 1.0 / total
    _store(out_ptr + of_q, result * (inverse * scale)[:, None], q, Q, row, K, width)
    tl.store(stats_ptr + item * Q + q, most, mask=q < Q)
    tl.store(stats_ptr + (tl.num_programs(1) + item) * Q + q, inverse, mask=q < Q)


@triton.jit
def _weights(s, stats_ptr, item, q, Q):
    """Weights again from logits."""
    most = tl.load(stats_ptr + item * Q + q, mask=q < Q, other=0.0)
    inverse = tl.load(stats_ptr + (tl.num_programs(1) + item) * Q + q, mask=q < Q, other=0.0)
    return tl.exp(s - most[:, None]) * inverse[:, None]


@triton.jit
def _diagonals(ds, N: tl.constexpr, after: tl.constexpr):
    """[N] sums of a tile's diagonals m - q = t - (N - 1), t from 0, or from N on with `after`."""
    i, t = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    column = t + i + 1 if after else t + i - (N - 1)
    there = (column >= 0) & (column < N)
    return tl.sum(tl.where(there, tl.gather(ds, tl.where(there, column, 0), 1), 0.0), 0)


@tuned([4, 8], ["width"])
@triton.jit
def _backward_queries(
    grad_ptr, q_ptr, k_ptr, v_ptr, out_ptr, stats_ptr, distances, real, of_queries, of_keys, states,
    dq_ptr, delta_ptr, parts_ptr, H, Q, M, K,
    causal: tl.constexpr, low: tl.constexpr, threshold: tl.constexpr, scale: tl.constexpr,
    width: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries, and what the softmax takes off each (delta); sums by distance into the block's
    row of parts [B H, blocks, blocks of keys x N + N], place m - q + N - 1 by numbers q within the block."""
    q = tl.program_id(0) * N + tl.arange(0, N)
    b, h, item, row, of_q, of_k = _place(H, Q, M, K)
    masks = _masks(distances, real, of_queries, of_keys, b, h, Q, M)
    if distances is not None:
        parts_ptr += (item * tl.num_programs(0) + tl.program_id(0)) * (tl.cdiv(M, N) + 1) * N
    W: tl.constexpr = stats_ptr.dtype.element_ty
    left = _rows(q_ptr + of_q, q, Q, row, K, width)
    grad = _rows(grad_ptr + of_q, q, Q, row, K, width)
    out = _rows(out_ptr + of_q, q, Q, row, K, width)
    delta = tl.sum(grad.to(W) * out.to(W), 1)
    tl.store(delta_ptr + item * Q + q, delta, mask=q < Q)
    dq = tl.zeros([N, width], W)
    carry = tl.zeros([N], W)
    end = _end(Q, M, N, causal)
    for first in range(0, end, N):
        m = first + tl.arange(0, N)
        right = _rows(k_ptr + of_k, m, M, row, K, width)
        s = _logits(left, right, q, m, masks, Q, M, causal, low)
        p = _weights(s, stats_ptr, item, q, Q)
        dp = dot(grad, tl.trans(_rows(v_ptr + of_k, m, M, row, K, width))) * scale
        if states is not None:
            dp = tl.where(_kept(states, item, q, m, Q, threshold), dp, 0.0)
        ds = p * (dp - delta[:, None])
        dq += dot(ds.to(right.dtype), right)
        if distances is not None:
            tl.store(parts_ptr + m, carry + _diagonals(ds, N, False))
            carry = _diagonals(ds, N, True)
    if distances is not None:
        tl.store(parts_ptr + tl.cdiv(end, N) * N + tl.arange(0, N), carry)
    _store(dq_ptr + of_q, dq, q, Q, row, K, width)


@tuned([4, 8], ["width"])
@triton.jit
def _backward_keys(
    grad_ptr, q_ptr, k_ptr, v_ptr, stats_ptr, distances, real, of_queries, of_keys, states,
    delta_ptr, dk_ptr, dv_ptr, H, Q, M, K,
    causal: tl.constexpr, low: tl.constexpr, threshold: tl.constexpr, scale: tl.constexpr,
    width: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values."""
    m = tl.program_id(0) * N + tl.arange(0, N)
    b, h, item, row, of_q, of_k = _place(H, Q, M, K)
    masks = _masks(distances, real, of_queries, of_keys, b, h, Q, M)
    W: tl.constexpr = stats_ptr.dtype.element_ty
    right = _rows(k_ptr + of_k, m, M, row, K, width)
    values = _rows(v_ptr + of_k, m, M, row, K, width)
    dk = tl.zeros([N, width], W)
    dv = tl.zeros([N, width], W)
    start = 0
    if causal:
        start = tl.maximum(0, tl.program_id(0) * N - (M - Q)) // N * N
    for first in range(start, Q, N):
        q = first + tl.arange(0, N)
        left = _rows(q_ptr + of_q, q, Q, row, K, width)
        grad = _rows(grad_ptr + of_q, q, Q, row, K, width)
        s = _logits(left, right, q, m, masks, Q, M, causal, low)
        p = _weights(s, stats_ptr, item, q, Q)
        dp = dot(grad, tl.trans(values)) * scale
        weights = p * scale
        if states is not None:
            kept = _kept(states, item, q, m, Q, threshold)
            dp, weights = tl.where(kept, dp, 0.0), tl.where(kept, weights, 0.0)
        delta = tl.load(delta_ptr + item * Q + q, mask=q < Q, other=0.0)
        ds = p * (dp - delta[:, None])
        dv += dot(tl.trans(weights.to(grad.dtype)), grad)
        dk += dot(tl.trans(ds.to(left.dtype)), left)
    _store(dk_ptr + of_k, dk, m, M, row, K, width)
    _store(dv_ptr + of_k, dv, m, M, row, K, width)


@triton.jit
def _sum_distances(parts_ptr, out_ptr, B, H, Q, M, N: tl.constexpr):
    """Gradients of a head's distances: over sequences and blocks of queries, in that order."""
    h, r = tl.program_id(1), tl.program_id(0) * N + tl.arange(0, N)
    blocks, place = tl.cdiv(Q, N), (tl.cdiv(M, N) + 1) * N
    total = tl.zeros([N], out_ptr.dtype.element_ty)
    for b in range(B):
        for first in range(blocks):
            at = r - (Q - 1) + first * N + N - 1
            part = parts_ptr + ((b * H + h) * blocks + first) * place
            total += tl.load(part + at, mask=(at >= 0) & (at < place), other=0.0)
    tl.store(out_ptr + h * (Q + M - 1) + r, total, mask=r < Q + M - 1)


def _tile(dtype: torch.dtype, *, backward: bool) -> int:
    """N."""
    return 64 >> (dtype.itemsize > 2) >> backward


def _constants(q: Tensor, tile: int, causal: bool, states: Tensor | None, rate: float) -> dict[str, Any]:
    """What kernels are compiled for."""
    return {
        "causal": causal,
        "low": torch.finfo(at_least_float32(q.dtype)).min / 4,
        "threshold": threshold(rate),
        "scale": 1.0 if states is None else 1.0 / (1.0 - rate),
        "width": block(q.shape[-1], 1 << 30),
        "N": tile,
    }


def _whole(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, by_distance: Tensor | None, real: Tensor | None, of_queries: Tensor | None,
    of_keys: Tensor | None, causal: bool, states: Tensor | None, rate: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `ops/fused/attention.py`."""
    batch, queries, heads, width = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    stats = torch.empty(2, batch, heads, queries, dtype=at_least_float32(q.dtype), device=q.device)
    tensors = _whole(q, k, v, by_distance, real, of_queries, of_keys, states)
    tile = _tile(q.dtype, backward=False)
    _forward[triton.cdiv(queries, tile), batch * heads](
        *tensors, out, stats, heads, queries, k.shape[1], width, **_constants(q, tile, causal, states, rate)
    )
    return out, stats


def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, stats: Tensor, by_distance: Tensor | None,
    real: Tensor | None, of_queries: Tensor | None, of_keys: Tensor | None, causal: bool, states: Tensor | None,
    rate: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `ops/fused/attention.py`."""
    (batch, queries, heads, width), keys, tile = q.shape, k.shape[1], _tile(q.dtype, backward=True)
    sizes, constants = (heads, queries, keys, width), _constants(q, tile, causal, states, rate)
    blocks, blocks_of_keys = triton.cdiv(queries, tile), triton.cdiv(keys, tile)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(stats[0])
    asked = heads if by_distance is not None else 0
    parts = stats.new_zeros(batch * asked, blocks, (blocks_of_keys + 1) * tile)
    distances = stats.new_empty(asked, queries + keys - 1)
    grad, q, k, v, out, *masks = _whole(grad, q, k, v, out, by_distance, real, of_queries, of_keys, states)  # type: ignore[assignment]
    _backward_queries[blocks, batch * heads](
        grad, q, k, v, out, stats, *masks, dq, delta, parts, *sizes, **constants
    )  # fmt: skip
    _backward_keys[blocks_of_keys, batch * heads](
        grad, q, k, v, stats, *masks, delta, dk, dv, *sizes, **constants
    )  # fmt: skip
    if asked:
        grid = triton.cdiv(queries + keys - 1, tile), heads
        _sum_distances[grid](parts, distances, batch, heads, queries, keys, tile)
    return dq, dk, dv, distances
