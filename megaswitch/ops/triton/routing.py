"""Queues, counts and orders of tokens by expert: the kernels of `ops/fused/routing.py` for the GPU.

A token's 8 bytes are read twice and its place written; a counter for each run of 128 tokens and expert is written and
summed over runs (4 E bytes for 1,024 of tokens: as much as the tokens for 256 experts, which is why runs are no
shorter). Within a run each token is compared with those before it, 128 integer operations: 8,192 tokens are a million,
under a microsecond of one H100's 14 T a second. A sort by keys, which this stands for, passes over all tokens a dozen
times. Counters are integers, so that nothing depends on the order in which they are raised.

A token whose number is no expert's is not queued, on a GPU also where it should not be: raising an error there would
need a word from the device.

G groups, S tokens of a group, K choices a token, E experts, A rows, L lanes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_RUN = 128
_WARPS = 16  # 32 comparisons a thread


@triton.jit
def _tokens(index, S, E, RUN: tl.constexpr):
    """This program's tokens, their experts, and whether they have one."""
    s = tl.program_id(0) * RUN + tl.arange(0, RUN)
    e = tl.load(index + tl.program_id(1).to(tl.int64) * S + s, mask=s < S, other=-1)
    return s, e, (e >= 0) & (e < E)


@triton.jit
def _count(index, parts, S, E, RUN: tl.constexpr):
    """Tokens of each expert in this run, into [G, runs, E]."""
    _, e, valid = _tokens(index, S, E, RUN)
    run = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.atomic_add(parts + run * E + e, tl.full([RUN], 1, tl.int32), mask=valid)


@triton.jit
def _place(index, before, place, order, S, E, RUN: tl.constexpr):
    """Each token's place: those before its run, and those before it in its run. `order` gets the token at its place."""
    s, e, valid = _tokens(index, S, E, RUN)
    g = tl.program_id(1).to(tl.int64)
    i = tl.arange(0, RUN)
    earlier = (e[:, None] == e[None, :]) & (i[None, :] < i[:, None])
    first = tl.load(before + (g * tl.num_programs(0) + tl.program_id(0)) * E + e, mask=valid, other=0)
    at = tl.where(valid, first + tl.sum(earlier.to(tl.int32), 1), 0)
    tl.store(place + g * S + s, at, mask=s < S)
    if order is not None:
        tl.store(order + at, s.to(tl.int64), mask=valid)


def _counts(index_GS: Tensor, experts: int) -> Tensor:
    """[G, runs, E] int32."""
    groups, tokens = index_GS.shape
    runs = triton.cdiv(tokens, _RUN)
    parts = torch.zeros(groups, runs, experts, dtype=torch.int32, device=index_GS.device)
    if parts.numel():
        _count[runs, groups](index_GS, parts, tokens, experts, _RUN)
    return parts


def queue(index: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """See `ops/fused/routing.py`."""
    index = index.contiguous()
    parts = _counts(index, num_experts)
    upto = parts.cumsum(1)
    place = torch.zeros_like(index)
    sizes = (index.shape[1], num_experts)
    if parts.numel():
        _place[parts.shape[1], len(index)](index, upto - parts, place, None, *sizes, _RUN, num_warps=_WARPS)
    return place, parts.sum(1)


def count_choices(index: Tensor, num_experts: int) -> Tensor:
    """See `ops/fused/routing.py`."""
    groups, tokens, rounds = index.shape
    parts = _counts(index.movedim(2, 1).reshape(groups * rounds, tokens).contiguous(), num_experts)
    return parts.sum(1).view(groups, rounds, num_experts)


def lane_order(lane: Tensor, lanes: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `ops/fused/routing.py`."""
    parts = _counts(lane.contiguous().unsqueeze(0), lanes)
    count = parts.sum((0, 1))
    before = parts.cumsum(1) - parts + (count.cumsum(0) - count)
    order, place = torch.empty_like(lane), torch.empty_like(lane)
    if parts.numel():
        sizes = (len(lane), lanes)
        _place[parts.shape[1], 1](lane.contiguous(), before, place, order, *sizes, _RUN, num_warps=_WARPS)
    return order, place, count
