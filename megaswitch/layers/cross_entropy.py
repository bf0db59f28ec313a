"""Cross-entropy with z-loss over a vocabulary split on an axis; logits are never gathered.

N tokens, V this rank's part of the vocabulary.

On the axis: three all-reduces of N w bytes forward (the maximum, the sum, the logit at the target), none backward.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from megaswitch.comm.collectives import all_reduce_
from megaswitch.topology.topology import Axis


class TokenLosses(NamedTuple):
    """Per token: `loss_N` = nll + z, with gradient; `nll_N` = -log p(target); `z_N` = z_loss * log^2 Z."""

    loss_N: Tensor
    nll_N: Tensor
    z_N: Tensor


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, target_N: Tensor, first: int, z_loss: float, axis: Axis
    ) -> tuple[Tensor, Tensor, Tensor]:
        highest_N = all_reduce_(logits_NV.amax(-1), axis, "max")
        exp_NV = (logits_NV - highest_N.unsqueeze(-1)).exp_()
        sum_N = all_reduce_(exp_NV.sum(-1), axis)
        local_N = target_N - first
        held_N = (local_N >= 0) & (local_N < logits_NV.shape[1])
        local_N = torch.where(held_N, local_N, 0)
        at_target_N = logits_NV.gather(1, local_N.unsqueeze(1)).squeeze(1) * held_N
        log_z_N = sum_N.log() + highest_N
        nll_N = log_z_N - all_reduce_(at_target_N, axis)
        z_N = z_loss * log_z_N.square()
        ctx.save_for_backward(exp_NV.div_(sum_N.unsqueeze(-1)), local_N, held_N, log_z_N)
        ctx.z_loss = z_loss
        ctx.mark_non_differentiable(nll_N, z_N)
        return nll_N + z_N, nll_N, z_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        grad_N = grads[0]
        p_NV, local_N, held_N, log_z_N = ctx.saved_tensors
        d_NV = p_NV * (grad_N * (1.0 + 2.0 * ctx.z_loss * log_z_N)).unsqueeze(-1)
        d_NV.scatter_add_(1, local_N.unsqueeze(1), -(grad_N * held_N).unsqueeze(1))
        return d_NV, None, None, None, None


def cross_entropy(logits_NV: Tensor, target_N: Tensor, first: int, z_loss: float, axis: Axis) -> TokenLosses:
    """Losses of each token; `first` is the id of this rank's first column, targets are global ids (int64)."""
    return TokenLosses(*_CrossEntropy.apply(logits_NV, target_N, first, z_loss, axis))  # type: ignore[no-untyped-call]
