"""Routing: the kernels of `ops/fused/router.py` for the GPU.

Up to 128 experts one kernel takes tokens to logits and choices: a program has 64 of them, jittered as they are read,
and all their logits in registers (32 KB of a multiprocessor's 256). Its product does 32 operations for a byte of the
matrix, which the second cache's 5.5 TB/s turn into 176 TFLOP/s: what three passes of TF32 reach. Logits are written
once, for the backward and the sums, and tokens are read once in their own type, where widening, jitter, product and
softmax one after the other move 18 bytes for a number in bfloat16 instead of 2. Beyond 128 experts registers hold fewer
tokens, the cache would bound the product, and bytes of tokens matter less: there the product is the library's.

From logits, a program has one token (2,048 experts in float32 are 8 KB; two exponentials and a logarithm a logit are
45% of what the bytes take at 16 a clock). Logits are read twice forward and once backward, and nothing of their size
but their gradient is written: 16 bytes a logit, where softmax, choice, logarithms and sums one by one take some 60.
Sums by group are taken by tiles of 32 tokens and 512 experts, 128 tokens a program, and these are summed by torch:
programs of a group that has none of their tokens read 128 numbers and write zeros. The order of sums depends on shapes
alone. They, and places in queues, need tokens of other programs: hence kernels of their own.

T tokens, D d_model, G groups of tokens, E experts, K choices a token.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from megaswitch.ops.triton.dot import dot
from megaswitch.ops.triton.dropout import jitter
from megaswitch.ops.triton.random import factors
from megaswitch.ops.triton.routing import count_choices, queue
from megaswitch.ops.triton.tune import block, tuned, wide
from megaswitch.utils.precision import at_least_float32

_MOST_EXPERTS = 128
_TOGETHER = 64
_DEEP = 32
_WARPS = 8  # with 4 registers spill
_TOKENS = 128
_TILE = 32
_EXPERTS = 512
_LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32


@triton.jit
def _choose(x, t, e, T, E, noise, index, gate, log_z, entropy, greatest, inverse, K: tl.constexpr):
    """All that is said of tokens t by their logits x [t, e], which are -inf where there is no expert."""
    there, expert = t < T, (e < E)[None, :]
    top = tl.max(x, 1)
    total = tl.sum(tl.exp(x - top[:, None]), 1)
    p = tl.exp(x - top[:, None]) / total[:, None]
    tl.store(log_z + t, top + tl.log(total), mask=there)
    tl.store(entropy + t, -tl.sum(tl.where(p > 0.0, p * tl.log(tl.where(p > 0.0, p, 1.0)), 0.0), 1), mask=there)
    tl.store(greatest + t, top, mask=there)
    tl.store(inverse + t, 1.0 / total, mask=there)
    wanted = x
    if noise is not None:
        wanted += tl.load(noise + t[:, None] * E + e[None, :], mask=there[:, None] & expert, other=0.0)
    # What is chosen, and what is no expert, counts as less than experts without a chance: none is chosen twice.
    wanted = tl.where(expert, tl.where(wanted > _LOWEST, wanted, _LOWEST), float("-inf"))
    for k in range(K):
        logit, choice = tl.max(wanted, 1, return_indices=True)
        chosen = e[None, :] == choice[:, None]
        if noise is not None:
            logit = tl.sum(tl.where(chosen, x, 0.0), 1)
        tl.store(index + t * K + k, choice.to(tl.int64), mask=there)
        tl.store(gate + t * K + k, tl.exp(logit - top) / total, mask=there)
        wanted = tl.where(chosen, float("-inf"), wanted)


@tuned([4, 2, 8], ["E"])
@triton.jit
def _of_logits(
    logits, noise, index, gate, log_z, entropy, greatest, inverse, T, E, K: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    t, e = tl.program_id(0).to(tl.int64) + tl.arange(0, 1), tl.arange(0, BLOCK)
    x = tl.load(logits + t[:, None] * E + e[None, :], mask=(e < E)[None, :], other=float("-inf"))
    _choose(x, t, e, T, E, noise, index, gate, log_z, entropy, greatest, inverse, K)


@triton.jit
def _of_tokens(
    tokens, weight, states, logits, noise, index, gate, log_z, entropy, greatest, inverse, T, D, E, stride_d, stride_e,
    size: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
    DEEP: tl.constexpr,
):  # fmt: skip
    t, e = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, BLOCK)
    x = tl.zeros([TOKENS, BLOCK], WIDE)
    for start in range(0, D, DEEP):
        d = start + tl.arange(0, DEEP)
        a = tl.load(tokens + t[:, None] * D + d[None, :], mask=(t < T)[:, None] & (d < D)[None, :], other=0.0)
        b = tl.load(weight + d[:, None] * stride_d + e[None, :] * stride_e, mask=(d < D)[:, None] & (e < E)[None, :],
                    other=0.0)  # fmt: skip
        a = a.to(b.dtype)
        if states is not None:
            a = (a.to(WIDE) * factors(states, t, T, d.to(tl.int64), size, WIDE).to(b.dtype).to(WIDE)).to(b.dtype)
        x = dot(a, b, x)
    x = x.to(weight.dtype.element_ty).to(WIDE)
    tl.store(logits + t[:, None] * E + e[None, :], x, mask=(t < T)[:, None] & (e < E)[None, :])
    x = tl.where((e < E)[None, :], x, float("-inf"))
    _choose(x, t, e, T, E, noise, index, gate, log_z, entropy, greatest, inverse, K)


@triton.jit
def _group_sums(
    logits, greatest, inverse, group, real, parts, T, E,
    WIDE: tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of the probabilities of TOKENS tokens that are real and of one group, into [G, programs, E]."""
    e, g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(2)
    first = tl.program_id(1) * TOKENS
    total = tl.zeros([BLOCK], WIDE)
    all_t = first + tl.arange(0, TOKENS)
    if tl.max((tl.load(group + all_t, mask=all_t < T, other=-1) == g).to(tl.int32), 0) > 0:
        for start in range(first, first + TOKENS, TILE):
            t = start + tl.arange(0, TILE)
            there = t < T
            own = (tl.load(group + t, mask=there, other=-1) == g) & (tl.load(real + t, mask=there, other=0) != 0)
            inside = own[:, None] & (e < E)[None, :]
            x = tl.load(logits + t.to(tl.int64)[:, None] * E + e[None, :], mask=inside, other=float("-inf"))
            top, by = tl.load(greatest + t, mask=there, other=0.0), tl.load(inverse + t, mask=there, other=0.0)
            total += tl.sum(tl.where(inside, tl.exp(x - top[:, None]) * by[:, None], 0.0), 0)
    tl.store(parts + (g.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * E + e, total, mask=e < E)


@tuned([4, 1, 8], ["E"])
@triton.jit
def _backward(
    logits, log_z, index, group, real, grad_gate, grad_log_z, grad_probs, out, E,
    K: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t, e = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x = tl.load(logits + t * E + e, mask=e < E, other=float("-inf"))
    weights = tl.exp(x - tl.load(log_z + t))
    p = weights / tl.sum(weights, 0)
    of_probs = tl.load(grad_probs + tl.load(group + t) * E + e, mask=e < E, other=0.0)
    of_probs *= (tl.load(real + t) != 0).to(WIDE)
    for k in range(K):
        of_probs += tl.where(e == tl.load(index + t * K + k), tl.load(grad_gate + t * K + k), 0.0)
    d = p * (of_probs + (tl.load(grad_log_z + t) - tl.sum(p * of_probs, 0)))
    tl.store(out + t * E + e, d, mask=e < E)


def route_forward(
    x: Tensor, weight: Tensor | None, states: Tensor | None, size: float, noise: Tensor | None, group: Tensor,
    real: Tensor, num_groups: int, whole: bool, choices: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """See `ops/fused/router.py`."""
    x, noise = x.contiguous(), None if noise is None else noise.contiguous()
    group, real, tokens = group.contiguous(), real.contiguous(), len(x)
    if weight is None:
        logits = x
    else:
        logits = _empty_logits(x, weight) if weight.shape[1] <= _MOST_EXPERTS else _logits(x, weight, states, size)
    experts = logits.shape[1]
    index, gate = (like.new_empty(tokens, choices) for like in (group, logits))
    log_z, entropy, greatest, inverse = (logits.new_empty(tokens) for _ in range(4))
    programs, width = triton.cdiv(tokens, _TOKENS), block(experts, _EXPERTS)
    parts = logits.new_empty(num_groups, programs, experts)
    if tokens:
        outputs = (noise, index, gate, log_z, entropy, greatest, inverse, tokens)
        if weight is not None and experts <= _MOST_EXPERTS:
            _product(x, weight, states, size, logits, outputs, choices)
        else:
            _of_logits[(tokens,)](logits, *outputs, experts, K=choices, BLOCK=triton.next_power_of_2(experts))
        _group_sums[triton.cdiv(experts, width), programs, num_groups](
            logits, greatest, inverse, group, real, parts, tokens, experts, wide(logits.dtype), _TOKENS, _TILE, width
        )
    place, count = _queued(index, group, real, num_groups if whole else 0, experts)
    made = x.new_empty(0, experts) if weight is None else logits
    return made, index, gate, log_z, entropy, parts.sum(1), place, count


def _empty_logits(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(len(x), weight.shape[1], dtype=at_least_float32(weight.dtype))


def _logits(x: Tensor, weight: Tensor, states: Tensor | None, size: float) -> Tensor:
    """By the library's product."""
    x = x.to(weight.dtype)
    if states is not None:
        x = jitter(x, states, size)
    return (x @ weight).to(at_least_float32(weight.dtype))


def _product(
    x: Tensor,
    weight: Tensor,
    states: Tensor | None,
    size: float,
    logits: Tensor,
    outputs: tuple[Any, ...],
    choices: int,
) -> None:
    states, (width, experts) = None if states is None else states.contiguous(), weight.shape
    constants = {"WIDE": wide(logits.dtype), "TOKENS": _TOGETHER, "BLOCK": block(experts, _MOST_EXPERTS), "DEEP": _DEEP}
    sizes = (width, experts, *weight.stride())
    _of_tokens[(triton.cdiv(len(x), _TOGETHER),)](
        x, weight, states, logits, *outputs, *sizes, size=size, K=choices, num_warps=_WARPS, **constants
    )


def _queued(index: Tensor, group: Tensor, real: Tensor, groups: int, experts: int) -> tuple[Tensor, Tensor]:
    """Places of first choices and counts of all, as if each group had experts of its own; nothing of no groups."""
    if groups == 0:
        return index.new_empty(0), index.new_empty(0, index.shape[1], experts)
    lane = torch.where(real.unsqueeze(1), group.unsqueeze(1) * experts + index, -1).unsqueeze(0)
    place, first = queue(lane[..., 0], groups * experts)
    rest = count_choices(lane[..., 1:], groups * experts)
    count = torch.cat((first.unsqueeze(1), rest), 1).view(-1, groups, experts)
    return place.squeeze(0), count.transpose(0, 1).contiguous()


def tokens_gradient(
    grad: Tensor, weight: Tensor, states: Tensor | None, size: float, dtype: torch.dtype
) -> Tensor:
    """See `ops/fused/router.py`; the product is the library's."""
    out = grad @ weight.t()
    if states is not None:
        out = jitter(out, states, size)
    return out.to(dtype)


def route_backward(
    logits: Tensor, log_z: Tensor, index: Tensor, group: Tensor, real: Tensor, grad_gate: Tensor, grad_log_z: Tensor,
    grad_probs: Tensor,
) -> Tensor:  # fmt: skip
    """See `ops/fused/router.py`."""
    logits, (tokens, experts) = logits.contiguous(), logits.shape
    rest = [x.contiguous() for x in (log_z, index, group, real, grad_gate, grad_log_z, grad_probs)]
    out = torch.empty_like(logits)
    constants = {"K": index.shape[1], "WIDE": wide(logits.dtype), "BLOCK": triton.next_power_of_2(experts)}
    if tokens:
        _backward[(tokens,)](logits, *rest, out, experts, **constants)
    return out
