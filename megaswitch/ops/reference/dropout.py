"""Dropout and jitter by the stateless generator: each row has a random state, each feature folds its number in.

N rows, F features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from megaswitch.ops.reference.random import drop, fold, to_uniform


class RowDrop(NamedTuple):
    """Dropout of rows: their states of the generator (int64), the share that is dropped, and the number of their first
    feature."""

    states_N: Tensor
    rate: float
    first_feature: int = 0


def features_uniform(states_N: Tensor, first_feature: int, width: int) -> Tensor:
    """[N, width] numbers in [0, 1), float32: feature f of a row has the number first_feature + f."""
    features = torch.arange(first_feature, first_feature + width, device=states_N.device)
    return to_uniform(fold(states_N, features))


def dropout(x_NF: Tensor, states_N: Tensor, rate: float, first_feature: int) -> Tensor:
    """`drop` by numbers that follow from the rows' states (int64); `first_feature` is the number of x's first one."""
    return drop(x_NF, rate, features_uniform(states_N, first_feature, x_NF.shape[1]))


def jitter_by(x: Tensor, uniform: Tensor, size: float) -> Tensor:
    """x times factors from 1 - size to 1 + size that follow from numbers in [0, 1)."""
    factor = 1.0 + size * (2.0 * uniform.double() - 1.0)
    return x * factor.to(x.dtype)


def jitter(x_NF: Tensor, states_N: Tensor, size: float) -> Tensor:
    """`jitter_by` numbers that follow from the rows' states (int64)."""
    return jitter_by(x_NF, features_uniform(states_N, 0, x_NF.shape[1]), size)
