"""Tokens to their experts and back: permute, all-to-all with variable splits, and the same way home.

T local tokens, A assignments of tokens to experts (one a choice), N kept ones, M received ones, D width,
E experts, X experts of this rank, R ranks on the ep axis.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megaswitch.comm.collectives import all_to_all
from megaswitch.comm.functions import exchange
from megaswitch.topology.topology import Axis
from megaswitch.utils.host import host_read


@dataclass(frozen=True)
class Route:
    """Where kept tokens go.

    Args:
        axis: the expert-parallel axis.
        kept_N: indices of kept assignments, sorted by expert.
        send: rows for each rank of the axis.
        receive: rows from each rank.
        counts: received rows of each of this rank's experts.
        by_expert_M: order of received rows that brings those of an expert together; None when they are already.
    """

    axis: Axis
    kept_N: Tensor
    send: list[int]
    receive: list[int]
    counts: list[int]
    by_expert_M: Tensor | None


def make_route(index_A: Tensor, kept_A: Tensor, num_experts: int, axis: Axis) -> Route:
    """The route of assignments that want `index_A` and have a slot where `kept_A`; dropped ones do not travel.

    One small all-to-all tells each rank how many rows to expect, one host read brings the numbers over.
    """
    lane_A = torch.where(kept_A, index_A, num_experts)
    count_RX = torch.bincount(lane_A, minlength=num_experts + 1)[:num_experts].view(axis.size, -1)
    ones = [1] * axis.size
    received_RX = all_to_all(count_RX, axis, ones, ones)
    send, received = host_read("expert_splits", torch.stack([count_RX, received_RX]))
    counts = [sum(column) for column in zip(*received, strict=True)]
    return Route(
        axis=axis,
        kept_N=torch.argsort(lane_A, stable=True)[: sum(map(sum, send))],
        send=[sum(row) for row in send],
        receive=[sum(row) for row in received],
        counts=counts,
        by_expert_M=_by_expert(received_RX, sum(counts)),
    )


def _by_expert(received_RX: Tensor, total: int) -> Tensor | None:
    """Rows arrive by rank and then by expert; the stable order by expert and then by rank."""
    ranks, experts = received_RX.shape
    if ranks == 1 or experts == 1:
        return None
    expert_RX = torch.arange(experts, device=received_RX.device).repeat(ranks)
    return torch.argsort(expert_RX.repeat_interleave(received_RX.flatten(), output_size=total), stable=True)


def to_experts(x_TD: Tensor, route: Route, choices: int = 1) -> Tensor:
    """[M, D]: the rows of this rank's experts, sorted by expert; assignment a is of token a // choices."""
    token_N = route.kept_N if choices == 1 else route.kept_N // choices
    rows = exchange(x_TD.index_select(0, token_N), route.axis, route.send, route.receive)
    return rows if route.by_expert_M is None else rows.index_select(0, route.by_expert_M)


def from_experts(y_MD: Tensor, route: Route, assignments: int) -> Tensor:
    """[A, D]: results back at their assignments' places, zeros at dropped ones."""
    if route.by_expert_M is not None:
        y_MD = torch.zeros_like(y_MD).index_copy(0, route.by_expert_M, y_MD)
    home_ND = exchange(y_MD, route.axis, route.receive, route.send)
    return home_ND.new_zeros((assignments, home_ND.shape[1])).index_copy(0, route.kept_N, home_ND)
