"""Positions of tokens in the queues of their experts.

G routing groups, S tokens of a group, E experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Queues(NamedTuple):
    """`position_GS`: place of each token among its group's tokens of the same expert, in token order, from 0
    (0 for unrouted tokens); `count_GE`: tokens of each expert, before any is dropped. int64."""

    position_GS: Tensor
    count_GE: Tensor


def queue(index_GS: Tensor, num_experts: int) -> Queues:
    """The queues of each group when tokens choose `index_GS` (-1: not routed): an exclusive running count per
    expert in token order, by one stable sort instead of a [G, S, E] table."""
    groups, tokens = index_GS.shape
    lanes = num_experts + 1
    lane_GS = torch.where(index_GS < 0, num_experts, index_GS)
    key = (torch.arange(groups, device=index_GS.device).unsqueeze(1) * lanes + lane_GS).flatten()
    count = torch.bincount(key, minlength=groups * lanes)
    order = torch.argsort(key, stable=True)
    place = torch.arange(groups * tokens, device=key.device) - (count.cumsum(0) - count)[key[order]]
    position = torch.empty_like(place).index_copy_(0, order, place).view(groups, tokens)
    return Queues(position.masked_fill(index_GS < 0, 0), count.view(groups, lanes)[:, :num_experts])
