"""Tokens to their experts and back: permute, all-to-all, and the same way home.

Kept assignments travel with variable splits: no dropped token and no padding does, but the host has to read how many
there are. The padded route (`padded.py`) has fixed splits instead, for graphs that need static shapes.

T local tokens, A assignments of tokens to experts (one a choice), N kept ones, M received ones, D width,
E experts, X experts of this rank, R ranks on the ep axis.

On the ep axis, s bytes a number: all-to-alls of 8 E bytes (the counts), N D s (tokens), M D s (results) forward, of
M D s and N D s backward, and of 8 N forward where hidden units are dropped out (random states). Padded, N = M = E C,
and no counts.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megaswitch.comm.collectives import start_all_to_all
from megaswitch.comm.functions import Arriving, exchange
from megaswitch.layers.weight_work import WeightWork
from megaswitch.topology.topology import Axis
from megaswitch.utils.host import host_read


class Route(Protocol):
    """Where kept assignments go."""

    @property
    def counts(self) -> list[int]:
        """Received rows of each of this rank's experts."""
        ...

    def send(self, x_TD: Tensor, work: WeightWork, choices: int = 1) -> Arriving:
        """Start the rows [T, ...] on their way; assignment a is of row a // choices. `work` is done while gradients
        come back."""
        ...

    def by_expert(self, rows_MD: Tensor) -> Tensor:
        """What has arrived, sorted by expert."""
        ...

    def home(self, y_MD: Tensor, assignments: int, work: WeightWork) -> Tensor:
        """[A, D]: results, sorted by expert, back at their assignments' places, zeros at dropped ones."""
        ...


@dataclass(frozen=True)
class VariableRoute:
    """A route with as many rows as are kept.

    Args:
        axis: the expert-parallel axis.
        kept_N: indices of kept assignments, sorted by expert.
        sent: rows for each rank of the axis.
        received: rows from each rank.
        counts: received rows of each of this rank's experts.
        order_M: order of received rows that brings those of an expert together; None when they are already.
    """

    axis: Axis
    kept_N: Tensor
    sent: list[int]
    received: list[int]
    counts: list[int]
    order_M: Tensor | None

    def send(self, x_TD: Tensor, work: WeightWork, choices: int = 1) -> Arriving:
        """See Route."""
        row_N = self.kept_N if choices == 1 else self.kept_N // choices
        return exchange(x_TD.index_select(0, row_N), self.axis, self.sent, self.received, work.meanwhile)

    def by_expert(self, rows_MD: Tensor) -> Tensor:
        """See Route."""
        return rows_MD if self.order_M is None else rows_MD.index_select(0, self.order_M)

    def home(self, y_MD: Tensor, assignments: int, work: WeightWork) -> Tensor:
        """See Route."""
        if self.order_M is not None:
            y_MD = torch.zeros_like(y_MD).index_copy(0, self.order_M, y_MD)
        home_ND = exchange(y_MD, self.axis, self.received, self.sent, work.meanwhile).wait()
        return home_ND.new_zeros((assignments, home_ND.shape[1])).index_copy(0, self.kept_N, home_ND)


def make_route(index_A: Tensor, kept_A: Tensor, num_experts: int, axis: Axis) -> VariableRoute:
    """The route of assignments that want `index_A` and have a slot where `kept_A`; dropped ones do not travel.

    One small all-to-all tells each rank how many rows to expect, one host read brings the numbers over.
    """
    lane_A = torch.where(kept_A, index_A, num_experts)
    count_RX = torch.bincount(lane_A, minlength=num_experts + 1)[:num_experts].view(axis.size, -1)
    ones = [1] * axis.size
    counting = start_all_to_all(count_RX, axis, ones, ones)
    order_A = torch.argsort(lane_A, stable=True)  # while the counts travel
    received_RX = counting.wait()
    send, received = host_read("expert_splits", torch.stack([count_RX, received_RX]))
    counts = [sum(column) for column in zip(*received, strict=True)]
    return VariableRoute(
        axis=axis,
        kept_N=order_A[: sum(map(sum, send))],
        sent=[sum(row) for row in send],
        received=[sum(row) for row in received],
        counts=counts,
        order_M=_by_expert(received_RX, sum(counts)),
    )


def _by_expert(received_RX: Tensor, total: int) -> Tensor | None:
    """Rows arrive by rank and then by expert; the stable order by expert and then by rank."""
    ranks, experts = received_RX.shape
    if ranks == 1 or experts == 1:
        return None
    expert_RX = torch.arange(experts, device=received_RX.device).repeat(ranks)
    return torch.argsort(expert_RX.repeat_interleave(received_RX.flatten(), output_size=total), stable=True)
