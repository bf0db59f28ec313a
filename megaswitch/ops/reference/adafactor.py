"""Adafactor's arithmetic on matrices that may be parts of larger ones; who holds which part, and what is summed over
ranks in between, is the optimizer's to know (`optim/adafactor.py`).

B matrices of R rows and C columns, of which U are units whose root mean squares count (B of them, or one for all);
N elements of a tensor that is not factored. Gradients are as wide as the weights, or bfloat16; all else is of the
weights' type. A name with _ at its end updates its first arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SQUARE_EPSILON = 1e-30
LEAST_SCALE = 1e-3


@dataclass(frozen=True)
class Step:
    """An update's numbers: decay of the second moments, learning rate, largest root mean square of an update, and
    whether steps are relative to the root mean square of the weights."""

    decay: float
    lr: float
    clip: float
    scaled: bool


def add_mean_squares_(rows_BR: Tensor, cols_BC: Tensor, grad_BRC: Tensor, row_length: int, col_length: int) -> None:
    """Add what these parts bring to the means of squared gradients over whole rows and columns of those lengths."""
    squares_BRC = grad_BRC.to(rows_BR.dtype).square() + SQUARE_EPSILON
    rows_BR += squares_BRC.sum(2) / row_length
    cols_BC += squares_BRC.sum(1) / col_length


def row_factors(means_BR: Tensor) -> Tensor:
    """What an update is multiplied by in each row, from the running means of all rows [..., R]."""
    return (means_BR / means_BR.mean(-1, keepdim=True)).rsqrt_()


def add_squares_(
    sums_2U: Tensor, weights_BRC: Tensor, grad_BRC: Tensor, row_factors_BR: Tensor, col_factors_BC: Tensor
) -> None:
    """Add sums of squares of updates and of weights."""
    update_BRC = _update(weights_BRC, grad_BRC, row_factors_BR, col_factors_BC)
    squares_2B = torch.stack([x_BRC.square().sum((1, 2)) for x_BRC in (update_BRC, weights_BRC)])
    sums_2U += squares_2B if sums_2U.shape == squares_2B.shape else squares_2B.sum(1, keepdim=True)


def apply_(
    weights_BRC: Tensor, grad_BRC: Tensor, row_factors_BR: Tensor, col_factors_BC: Tensor, scale_U: Tensor
) -> None:
    """Add the scaled updates to the weights."""
    weights_BRC += _update(weights_BRC, grad_BRC, row_factors_BR, col_factors_BC) * scale_U.view(-1, 1, 1)


def update_(weights_BRC: Tensor, rows_BR: Tensor, cols_BC: Tensor, grad_BRC: Tensor, step: Step) -> None:
    """The whole update of matrices that lie here whole, each a unit of its own; `rows` and `cols` are running means."""
    fresh = rows_BR.new_zeros(rows_BR.shape), cols_BC.new_zeros(cols_BC.shape)
    add_mean_squares_(*fresh, grad_BRC, grad_BRC.shape[2], grad_BRC.shape[1])
    for running, new in zip((rows_BR, cols_BC), fresh, strict=True):
        running.lerp_(new, 1.0 - step.decay)
    factors = row_factors(rows_BR), cols_BC.rsqrt()
    sums_2B = rows_BR.new_zeros((2, len(rows_BR)))
    add_squares_(sums_2B, weights_BRC, grad_BRC, *factors)
    apply_(weights_BRC, grad_BRC, *factors, scales(sums_2B, grad_BRC.shape[1] * grad_BRC.shape[2], step))


def add_moments_(second_N: Tensor, sums_21: Tensor, weights_N: Tensor, grad_N: Tensor, decay: float) -> None:
    """Bring squared gradients into the second moments of a tensor that is not factored, and add sums of squares of
    updates and of weights."""
    wide_N = grad_N.to(weights_N.dtype)
    second_N.lerp_(wide_N.square() + SQUARE_EPSILON, 1.0 - decay)
    sums_21[0] += (wide_N * second_N.rsqrt()).square().sum()
    sums_21[1] += weights_N.square().sum()


def apply_moments_(weights_N: Tensor, grad_N: Tensor, second_N: Tensor, scale_1: Tensor) -> None:
    """Add the scaled update to the weights."""
    weights_N += grad_N.to(weights_N.dtype) * second_N.rsqrt() * scale_1


def scales(sums_2U: Tensor, elements: Tensor | int, step: Step) -> Tensor:
    """What the updates of each unit are multiplied by [U], from its sums of squares and its number of elements."""
    rms_2U = (sums_2U / elements).sqrt_()
    scale_U = -step.lr / (rms_2U[0] / step.clip).clamp_(min=1.0)
    return scale_U * rms_2U[1].clamp(min=LEAST_SCALE) if step.scaled else scale_U


def _update(like: Tensor, grad_BRC: Tensor, row_factors_BR: Tensor, col_factors_BC: Tensor) -> Tensor:
    return grad_BRC.to(like.dtype) * row_factors_BR.unsqueeze(2) * col_factors_BC.unsqueeze(1)


@dataclass(frozen=True)
class Passes:
    """The passes over memory, by torch unless a backend has faster ones."""

    add_mean_squares_: Callable[[Tensor, Tensor, Tensor, int, int], None] = add_mean_squares_
    add_squares_: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None] = add_squares_
    apply_: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None] = apply_
    update_: Callable[[Tensor, Tensor, Tensor, Tensor, Step], None] = update_
    add_moments_: Callable[[Tensor, Tensor, Tensor, Tensor, float], None] = add_moments_
    apply_moments_: Callable[[Tensor, Tensor, Tensor, Tensor], None] = apply_moments_


PASSES = Passes()
