"""AdamW's arithmetic on flat tensors, by torch's fused form: 28 bytes a parameter in float32, in one pass.

N elements.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw


@dataclass(frozen=True)
class AdamStep:
    """Update number `count` (from 1) and its numbers."""

    count: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


def adamw_(weights_N: Tensor, grad_N: Tensor, first_N: Tensor, second_N: Tensor, step: AdamStep) -> None:
    """Update weights and moments. Gradients and moments may be narrower than the weights: torch's form wants all of one
    type, so that they are widened for it."""
    grad_N = grad_N.to(weights_N.dtype)
    moments = first_N, second_N
    wide = [moment.to(weights_N.dtype) for moment in moments]
    before = torch.full((), float(step.count - 1), device=weights_N.device)
    adamw(
        [weights_N],
        [grad_N],
        wide[:1],
        wide[1:],
        [],
        [before],
        fused=True,
        amsgrad=False,
        beta1=step.beta1,
        beta2=step.beta2,
        lr=step.lr,
        weight_decay=step.weight_decay,
        eps=step.eps,
        maximize=False,
    )
    for moment, widened in zip(moments, wide, strict=True):
        if moment.dtype != widened.dtype:
            moment.copy_(widened)
