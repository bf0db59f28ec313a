"""Distillation of a sparse teacher into a dense student (paper 4.2): a mixture of the targets and the teacher's
probabilities. A pure function over logits; N target tokens, V the whole vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from megaswitch.utils.errors import UserError
from megaswitch.utils.precision import at_least_float32


class DistillationLoss(NamedTuple):
    """Scalars of at least float32, all with gradient to the student alone: `loss` = (1 - share) `hard` + T^2 share
    `soft`. `hard` is the cross-entropy with the targets, `soft` that with the teacher's probabilities, both with the
    z-loss of their own logits."""

    loss: Tensor
    hard: Tensor
    soft: Tensor


def distillation_loss(
    student_NV: Tensor,
    teacher_NV: Tensor,
    target_N: Tensor,
    weight_N: Tensor,
    *,
    soft_share: float = 0.25,
    temperature: float = 1.0,
    z_loss: float = 1e-4,
    denominator: Tensor | None = None,
) -> DistillationLoss:
    """The loss of the paper's best student: three quarters the targets, a quarter the teacher (section 4.2, table 6).

    Args:
        student_NV: the student's logits, of any floating type.
        teacher_NV: the teacher's logits, which get no gradient.
        target_N: ids of the targets, int64.
        weight_N: 1 for a real target, 0 for padding.
        soft_share: weight of the teacher.
        temperature: T, which both logits are divided by for `soft`; the paper does not print it, and 1 fits.
        z_loss: weight of the squared log-partition.
        denominator: real targets of the whole global batch, where these tokens are only a part of it; by default
            the sum of `weight_N`.
    """
    if not (0.0 <= soft_share <= 1.0 and temperature > 0.0):
        raise UserError(f"soft_share {soft_share} must be from 0 to 1, and temperature {temperature} above 0")
    student_NV = student_NV.to(at_least_float32(student_NV.dtype))
    teacher_NV = teacher_NV.detach().to(student_NV.dtype)
    count = weight_N.sum() if denominator is None else denominator
    hard_N = _hard(student_NV, target_N, z_loss)
    soft_N = _soft(student_NV / temperature, teacher_NV / temperature, z_loss)
    hard, soft = ((each_N * weight_N).sum() / count for each_N in (hard_N, soft_N))
    return DistillationLoss((1.0 - soft_share) * hard + temperature**2 * soft_share * soft, hard, soft)


def _hard(student_NV: Tensor, target_N: Tensor, z_loss: float) -> Tensor:
    """Cross-entropy of each token with its target, and z-loss."""
    log_z_N = torch.logsumexp(student_NV, -1)
    at_target_N = student_NV.gather(1, target_N.unsqueeze(1)).squeeze(1)
    return log_z_N - at_target_N + z_loss * log_z_N.square()


def _soft(student_NV: Tensor, teacher_NV: Tensor, z_loss: float) -> Tensor:
    """Cross-entropy of each token with the teacher's probabilities, and z-loss."""
    log_z_N = torch.logsumexp(student_NV, -1)
    expected_N = (torch.softmax(teacher_NV, -1) * student_NV).sum(-1)
    return log_z_N - expected_N + z_loss * log_z_N.square()
