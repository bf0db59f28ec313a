"""Routing: the kernels of `ops/fused/router.py` for the GPU.

Logits are read twice forward and once backward, and nothing of their size but their gradient is written: 16 bytes a
logit, where softmax, choice, logarithms and sums one by one take some 60. A program has one token, with all its logits
in registers (2,048 experts in float32 are 8 KB; two exponentials and a logarithm a logit are 45% of what the bytes
take at 16 a clock). Sums by group are taken by tiles of 32 tokens and 512 experts, 128 tokens a program, and these are
summed by torch: programs of a group that has none of their tokens read 128 numbers and write zeros. The order of sums
depends on shapes alone.

T tokens, G groups of tokens, E experts, K choices a token.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megaswitch.ops.triton.routing import count_choices, queue
from megaswitch.ops.triton.tune import block, tuned, wide

_TOKENS = 128
_TILE = 32
_EXPERTS = 512
_LOWEST = tl.constexpr(-3.4028234663852886e38)  # of float32


@tuned([4, 1, 8], ["E"])
@triton.jit
def _forward(
    logits, noise, index, gate, log_z, entropy, greatest, inverse, E,
    K: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t, e = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x = tl.load(logits + t * E + e, mask=e < E, other=float("-inf"))
    top = tl.max(x, 0)
    weights = tl.exp(x - top)
    total = tl.sum(weights, 0)
    p = weights / total
    tl.store(log_z + t, top + tl.log(total))
    tl.store(entropy + t, -tl.sum(tl.where(p > 0.0, p * tl.log(tl.where(p > 0.0, p, 1.0)), 0.0), 0))
    tl.store(greatest + t, top)
    tl.store(inverse + t, 1.0 / total)
    wanted = x
    if noise is not None:
        wanted += tl.load(noise + t * E + e, mask=e < E, other=0.0)
    # What is chosen, and what is no expert, counts as less than experts without a chance: none is chosen twice.
    wanted = tl.where(e < E, tl.where(wanted > _LOWEST, wanted, _LOWEST), float("-inf"))
    for k in range(K):
        choice = tl.argmax(wanted, 0)
        tl.store(index + t * K + k, choice.to(tl.int64))
        tl.store(gate + t * K + k, tl.exp(tl.load(logits + t * E + choice) - top) / total)
        wanted = tl.where(e == choice, float("-inf"), wanted)


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
    logits, index, gate, greatest, inverse, group, real, grad_gate, grad_log_z, grad_probs, out, E,
    K: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t, e = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x = tl.load(logits + t * E + e, mask=e < E, other=float("-inf"))
    p = tl.exp(x - tl.load(greatest + t)) * tl.load(inverse + t)
    shared = tl.load(grad_log_z + t)
    for k in range(K):
        shared -= tl.load(grad_gate + t * K + k) * tl.load(gate + t * K + k)
    of_group = tl.load(grad_probs + tl.load(group + t) * E + e, mask=e < E, other=0.0)
    of_group *= (tl.load(real + t) != 0).to(WIDE)
    d = p * (of_group + (shared - tl.sum(p * of_group, 0)))
    for k in range(K):
        of_gate = tl.load(grad_gate + t * K + k) * tl.load(gate + t * K + k)
        d += tl.where(e == tl.load(index + t * K + k), of_gate, 0.0)
    tl.store(out + t * E + e, d, mask=e < E)


def route_forward(
    logits: Tensor, noise: Tensor | None, group: Tensor, real: Tensor, num_groups: int, whole: bool, choices: int
) -> tuple[Tensor, ...]:
    """See `ops/fused/router.py`."""
    logits, noise = logits.contiguous(), None if noise is None else noise.contiguous()
    group, real, (tokens, experts) = group.contiguous(), real.contiguous(), logits.shape
    index, gate = (like.new_empty(tokens, choices) for like in (group, logits))
    log_z, entropy, greatest, inverse = (logits.new_empty(tokens) for _ in range(4))
    programs, width = triton.cdiv(tokens, _TOKENS), block(experts, _EXPERTS)
    parts = logits.new_empty(num_groups, programs, experts)
    if tokens:
        outputs = (index, gate, log_z, entropy, greatest, inverse)
        constants = {"K": choices, "WIDE": wide(logits.dtype), "BLOCK": triton.next_power_of_2(experts)}
        _forward[(tokens,)](logits, noise, *outputs, experts, **constants)
        _group_sums[triton.cdiv(experts, width), programs, num_groups](
            logits, greatest, inverse, group, real, parts, tokens, experts, wide(logits.dtype), _TOKENS, _TILE, width
        )
    place, count = _queued(index, group, real, num_groups if whole else 0, experts)
    return index, gate, log_z, entropy, parts.sum(1), place, count, greatest, inverse


def _queued(index: Tensor, group: Tensor, real: Tensor, groups: int, experts: int) -> tuple[Tensor, Tensor]:
    """Places of first choices and counts of all, as if each group had experts of its own; nothing of no groups."""
    if groups == 0:
        return index.new_empty(0), index.new_empty(0, index.shape[1], experts)
    lane = torch.where(real.unsqueeze(1), group.unsqueeze(1) * experts + index, -1).unsqueeze(0)
    place, first = queue(lane[..., 0], groups * experts)
    rest = count_choices(lane[..., 1:], groups * experts)
    count = torch.cat((first.unsqueeze(1), rest), 1).view(-1, groups, experts)
    return place.squeeze(0), count.transpose(0, 1).contiguous()


def route_backward(
    logits: Tensor, index: Tensor, gate: Tensor, greatest: Tensor, inverse: Tensor, group: Tensor, real: Tensor,
    grad_gate: Tensor, grad_log_z: Tensor, grad_probs: Tensor,
) -> Tensor:  # fmt: skip
    """See `ops/fused/router.py`."""
    logits, (tokens, experts) = logits.contiguous(), logits.shape
    rest = [x.contiguous() for x in (index, gate, greatest, inverse, group, real, grad_gate, grad_log_z, grad_probs)]
    out = torch.empty_like(logits)
    constants = {"K": index.shape[1], "WIDE": wide(logits.dtype), "BLOCK": triton.next_power_of_2(experts)}
    if tokens:
        _backward[(tokens,)](logits, *rest, out, experts, **constants)
    return out
