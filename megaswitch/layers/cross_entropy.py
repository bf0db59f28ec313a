"""The output product and its losses, block of tokens by block of tokens: no more logits exist than those of a block.

A block's logits are float32, and their gradient is computed as soon as their losses are: what the tokens' losses weigh
is known beforehand. So the output product's three products are all of the forward, and nothing as large as the logits
of a micro-batch is ever kept.

N target tokens, D d_model, V this rank's part of the vocabulary.

On the axis, for each block of n tokens: three all-reduces of n w bytes (the maximum, the sum, the logit at the
target).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megaswitch.comm.collectives import all_reduce, all_reduce_
from megaswitch.layers.weight_work import WeightWork, add_weight_grad, main_grad_of, oriented
from megaswitch.ops.ops import BY_DEFINITION, Ops
from megaswitch.topology.topology import Axis
from megaswitch.utils.precision import at_least_float32

_BLOCK_BYTES = 2**26  # enough rows for products at their full rate, little beside a model's activations


class Losses(NamedTuple):
    """In at least float32: `objective`, the sum of the tokens' losses times their factors, with gradient; per token
    and without gradient `nll_N` = -log p(target), `z_N` = z_loss * log^2 Z."""

    objective: Tensor
    nll_N: Tensor
    z_N: Tensor


@dataclass(frozen=True)
class Goal:
    """What the outputs are to be.

    Args:
        target_N: columns of this rank's part, int64; any other number is elsewhere.
        factor_N: what each token's loss counts, in at least float32.
        z_loss: weight of the squared log-partition.
        axis: which the vocabulary is split on.
        block: tokens of a block, the same on all ranks of the axis.
    """

    target_N: Tensor
    factor_N: Tensor
    z_loss: float
    axis: Axis
    block: int

    def blocks(self) -> Iterator[slice]:
        """Tokens of each block."""
        tokens = self.target_N.shape[0]
        return (slice(first, min(first + self.block, tokens)) for first in range(0, tokens, self.block))


def tokens_of_block(tokens: int, columns: int, dtype: torch.dtype) -> int:
    """Tokens of each of the fewest blocks of about equal size whose logits, in at least float32, fit into 64 MiB."""
    most = max(1, _BLOCK_BYTES // (columns * at_least_float32(dtype).itemsize))
    return -(-tokens // max(1, -(-tokens // most))) or 1


class _Objective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight: Tensor, goal: Goal, work: WeightWork, ops: Ops, transposed: bool, learn: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        weight_DV, main_grad = oriented(weight, x_ND.dtype, transposed), main_grad_of(weight)
        d_x_ND = torch.empty_like(x_ND) if learn else None
        d_weight = torch.zeros_like(weight) if learn and main_grad is None else main_grad

        def of_block(rows: slice) -> tuple[Tensor, Tensor]:
            """A function, so that its logits are gone before the next block's are made."""
            logits_nV = work.products.wide_times(x_ND[rows], weight_DV)
            nll_n, log_z_n = _losses(logits_nV, goal.target_N[rows], goal.axis, ops)
            if d_x_ND is not None and d_weight is not None:
                d_nV = _gradient(logits_nV, log_z_n, goal, rows, x_ND.dtype, ops)
                d_x_ND[rows] = work.products.times(d_nV, weight_DV.t())
                add_weight_grad(d_weight, x_ND[rows], d_nV, work.products, transposed)
            return nll_n, goal.z_loss * log_z_n.square()

        nll_N, z_N = map(torch.cat, zip(*map(of_block, goal.blocks()), strict=True))
        ctx.save_for_backward(d_x_ND, None if main_grad is not None else d_weight)
        ctx.mark_non_differentiable(nll_N, z_N)
        return ((nll_N + z_N) * goal.factor_N).sum(), nll_N, z_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_x_ND, d_weight), grad, rest = ctx.saved_tensors, grads[0], (None,) * 5
        if d_weight is not None:
            return d_x_ND * grad, d_weight * grad, *rest
        # on a GPU the host would have to wait to see it, and the code that calls this is the same
        if grad.device.type == "cpu" and grad.numpy() != 1.0:
            raise RuntimeError("the weight's gradient is where it belongs already: put factors into factor_N")
        return d_x_ND, None, *rest


def _gradient(
    logits_NV: Tensor, log_z_N: Tensor, goal: Goal, rows: slice, dtype: torch.dtype, ops: Ops
) -> Tensor:
    """That of a block's logits, in their place where it is of their type."""
    d_NV = logits_NV if logits_NV.dtype == dtype else torch.empty_like(logits_NV, dtype=dtype)
    target_N, factor_N = goal.target_N[rows], goal.factor_N[rows]
    ops.cross_entropy_gradient(logits_NV, target_N, log_z_N, factor_N, goal.z_loss, d_NV)
    return d_NV


def _losses(logits_NV: Tensor, target_N: Tensor, axis: Axis, ops: Ops) -> tuple[Tensor, Tensor]:
    """-log p(target) and the log-partition of each token."""
    own = ops.cross_entropy_statistics(logits_NV, target_N)
    greatest_N = all_reduce(own.greatest_N, axis, "max")
    sum_N = all_reduce_(own.sum_N * (own.greatest_N - greatest_N).exp_(), axis)
    log_z_N = sum_N.log() + greatest_N
    return log_z_N - all_reduce_(own.at_target_N, axis), log_z_N


def cross_entropy(
    x_ND: Tensor, weight: Tensor, goal: Goal, work: WeightWork, ops: Ops = BY_DEFINITION, *, transposed: bool = False
) -> Losses:
    """Losses of x W over a split vocabulary; with `transposed` the weight is stored [V, D].

    The weight's gradient is added to its `main_grad` at once, where it has one: then the objective's own gradient
    must be 1.
    """
    found: tuple[Tensor, Tensor, Tensor]
    learn = torch.is_grad_enabled() and (x_ND.requires_grad or weight.requires_grad)
    found = _Objective.apply(x_ND, weight, goal, work, ops, transposed, learn)  # type: ignore[no-untyped-call]
    return Losses(*found)
