"""AdamW's arithmetic on flat tensors, by torch's fused form: 28 bytes a parameter in float32, in one pass.

N elements.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

_RUN = 1 << 20
"""Elements that are widened together where gradients or moments are narrower than masters: copies of them are small."""


@dataclass(frozen=True)
class AdamStep:
    """Update number `count` (from 1) and its numbers."""

    count: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


def adamw_(
    weights_N: Tensor, grad_N: Tensor, first_N: Tensor, second_N: Tensor, rounded_N: Tensor | None, step: AdamStep
) -> None:
    """Update weights and moments, and put the weights into `rounded_N`, which is narrower, where there is one.
    Gradients and moments may be narrower than the weights: torch's form wants all of one type, so that they are widened
    for it."""
    tensors = (weights_N, grad_N, first_N, second_N)
    alike = len({tensor.dtype for tensor in tensors}) == 1
    length = max(1, weights_N.shape[0] if alike else _RUN)
    for start in range(0, weights_N.shape[0], length):
        run_N, grad_run_N, first_run_N, second_run_N = (tensor[start : start + length] for tensor in tensors)
        _update_(run_N, grad_run_N, first_run_N, second_run_N, step)
    if rounded_N is not None:
        rounded_N.copy_(weights_N)


def _update_(weights_N: Tensor, grad_N: Tensor, first_N: Tensor, second_N: Tensor, step: AdamStep) -> None:
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
