"""The two passes over logits that cross-entropy with z-loss needs, for one part of the vocabulary.

N tokens, V this part of the vocabulary. Targets are numbers of columns of this part; any other number is elsewhere.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from megaswitch.utils.precision import widen


class Statistics(NamedTuple):
    """Per token in at least float32: the greatest logit, the sum of exp(logit - greatest), and the target's logit (0
    where it is elsewhere)."""

    greatest_N: Tensor
    sum_N: Tensor
    at_target_N: Tensor


def _held(target_N: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    held_N = (target_N >= 0) & (target_N < columns)
    return torch.where(held_N, target_N, 0).unsqueeze(1), held_N


def cross_entropy_statistics(logits_NV: Tensor, target_N: Tensor) -> Statistics:
    """What the losses are made of; target_N are int64."""
    wide_NV = widen(logits_NV)
    greatest_N = wide_NV.amax(-1)
    sum_N = (wide_NV - greatest_N.unsqueeze(-1)).exp_().sum(-1)
    column_N1, held_N = _held(target_N, logits_NV.shape[1])
    return Statistics(greatest_N, sum_N, wide_NV.gather(1, column_N1).squeeze(1) * held_N)


def cross_entropy_gradient(
    logits_NV: Tensor, target_N: Tensor, log_z_N: Tensor, grad_N: Tensor, z_loss: float, into_NV: Tensor
) -> None:
    """Put into `into` the gradient of sum grad x (log Z - logit at target + z_loss log^2 Z), from the log-partition
    log_z_N of the whole vocabulary. `into` may be narrower, and may be the logits themselves."""
    d_NV = (widen(logits_NV) - log_z_N.unsqueeze(1)).exp_()
    d_NV.mul_((grad_N * (1.0 + 2.0 * z_loss * log_z_N)).unsqueeze(1))
    column_N1, held_N = _held(target_N, logits_NV.shape[1])
    d_NV.scatter_add_(1, column_N1, -(grad_N * held_N).unsqueeze(1))
    into_NV.copy_(d_NV)
