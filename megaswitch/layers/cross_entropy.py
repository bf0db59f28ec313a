"""Cross-entropy with z-loss over a vocabulary split on an axis; logits are never gathered.

N tokens, V this rank's part of the vocabulary.

On the axis: three all-reduces of N w bytes forward (the maximum, the sum, the logit at the target), none backward.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from megaswitch.comm.collectives import all_reduce, all_reduce_
from megaswitch.ops.ops import BY_DEFINITION, Ops
from megaswitch.topology.topology import Axis


class TokenLosses(NamedTuple):
    """Per token: `loss_N` = nll + z, with gradient; `nll_N` = -log p(target); `z_N` = z_loss * log^2 Z."""

    loss_N: Tensor
    nll_N: Tensor
    z_N: Tensor


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, target_N: Tensor, z_loss: float, axis: Axis, ops: Ops, consume: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        own = ops.cross_entropy_statistics(logits_NV, target_N)
        greatest_N = all_reduce(own.greatest_N, axis, "max")
        sum_N = all_reduce_(own.sum_N * (own.greatest_N - greatest_N).exp_(), axis)
        log_z_N = sum_N.log() + greatest_N
        nll_N = log_z_N - all_reduce_(own.at_target_N, axis)
        z_N = z_loss * log_z_N.square()
        ctx.save_for_backward(logits_NV, target_N, log_z_N)
        ctx.z_loss, ctx.ops, ctx.consume = z_loss, ops, consume
        ctx.mark_non_differentiable(nll_N, z_N)
        return nll_N + z_N, nll_N, z_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        logits_NV, target_N, log_z_N = ctx.saved_tensors
        d_NV = logits_NV.detach() if ctx.consume else logits_NV.clone(memory_format=torch.contiguous_format)
        ctx.ops.cross_entropy_gradient_(d_NV, target_N, log_z_N, grads[0], ctx.z_loss)
        if ctx.consume:
            increment_version(logits_NV)  # whoever wants the logits after this is told that they are no more
        return d_NV, None, None, None, None, None


def cross_entropy(
    logits_NV: Tensor,
    target_N: Tensor,
    first: int,
    z_loss: float,
    axis: Axis,
    ops: Ops = BY_DEFINITION,
    *,
    consume: bool = False,
) -> TokenLosses:
    """Losses of each token in at least float32, from logits of any type; `first` is the id of this rank's first column,
    targets are global ids (int64).

    With `consume` the backward puts the gradient in the place of the logits (contiguous), which nothing else may need
    by then: so there is never a second array of their size.
    """
    out: tuple[Tensor, Tensor, Tensor]
    out = _CrossEntropy.apply(logits_NV, target_N - first, z_loss, axis, ops, consume)  # type: ignore[no-untyped-call]
    return TokenLosses(*out)
