"""Which tokens go to which expert: positions in queues, counts, and the order by expert.

G routing groups, S tokens of a group, K choices a token, E experts, A rows, L lanes.
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


def count_choices(index_GSK: Tensor, num_experts: int) -> Tensor:
    """[G, K, E] int64: tokens of each group that name each expert in each round (-1: none)."""
    groups, _, rounds = index_GSK.shape
    lane_GSK = torch.where(index_GSK < 0, num_experts, index_GSK)
    group_G = torch.arange(groups, device=index_GSK.device)[:, None, None]
    round_K = torch.arange(rounds, device=index_GSK.device)
    lanes = num_experts + 1
    key = ((group_G * rounds + round_K) * lanes + lane_GSK).flatten()
    return torch.bincount(key, minlength=groups * rounds * lanes).view(groups, rounds, lanes)[..., :num_experts]


class Order(NamedTuple):
    """`order_A`: the rows sorted by lane, each lane's in their order; `place_A`: where each row comes in it; `count_L`:
    rows of each lane. int64."""

    order_A: Tensor
    place_A: Tensor
    count_L: Tensor


def lane_order(lane_A: Tensor, lanes: int) -> Order:
    """The stable order of rows by their lane, 0 to lanes - 1."""
    order_A = torch.argsort(lane_A, stable=True)
    numbers_A = torch.arange(lane_A.shape[0], device=lane_A.device)
    place_A = torch.empty_like(order_A).index_copy_(0, order_A, numbers_A)
    return Order(order_A, place_A, torch.bincount(lane_A, minlength=lanes))
