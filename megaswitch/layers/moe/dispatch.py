"""Tokens to their experts and back: permute, all-to-all, and the same way home.

Kept assignments travel with variable splits: no dropped token and no padding does, but the host has to read how many
there are. The padded route (`padded.py`) has fixed splits instead, for graphs that need static shapes.

T local tokens, K choices a token, A = T K assignments of tokens to experts, N kept ones, M received ones, D width,
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
from megaswitch.ops.ops import BY_DEFINITION, Ops
from megaswitch.ops.reference.routing import Order
from megaswitch.topology.topology import Axis
from megaswitch.utils.host import host_read


class Route(Protocol):
    """Where kept assignments go."""

    @property
    def counts(self) -> list[int]:
        """Received rows of each of this rank's experts."""
        ...

    def send(self, x_TD: Tensor, work: WeightWork) -> Arriving:
        """Start the rows [T, D] on their way; assignment a is of row a // K. `work` is done while gradients come
        back."""
        ...

    def send_numbers(self, numbers_A: Tensor) -> Arriving:
        """Start an integer of each assignment on its way."""
        ...

    def by_expert(self, rows_MD: Tensor) -> Tensor:
        """What has arrived, sorted by expert."""
        ...

    def home(self, y_MD: Tensor, gate_TK: Tensor | None, work: WeightWork) -> Tensor:
        """[T, D]: results, sorted by expert, back at their tokens, times their gates, summed over a token's choices;
        zeros where it is dropped. Without gates [A, D], for each assignment."""
        ...


@dataclass(frozen=True)
class VariableRoute:
    """A route with as many rows as are kept.

    Args:
        axis: the expert-parallel axis.
        kept_N: indices of kept assignments, sorted by expert.
        place_A: where each assignment comes in that order, N or later if it is dropped.
        sent: rows for each rank of the axis.
        received: rows from each rank.
        counts: received rows of each of this rank's experts.
        arrived: order of received rows that brings those of an expert together; None when they are already.
        ops: the implementations of the operations.
    """

    axis: Axis
    kept_N: Tensor
    place_A: Tensor
    sent: list[int]
    received: list[int]
    counts: list[int]
    arrived: Order | None
    ops: Ops

    def send(self, x_TD: Tensor, work: WeightWork) -> Arriving:
        """See Route."""
        rows_ND = self.ops.permute(x_TD, self.kept_N, self.place_A)
        return exchange(rows_ND, self.axis, self.sent, self.received, work.meanwhile)

    def send_numbers(self, numbers_A: Tensor) -> Arriving:
        """See Route."""
        return exchange(numbers_A.index_select(0, self.kept_N), self.axis, self.sent, self.received)

    def by_expert(self, rows: Tensor) -> Tensor:
        """See Route."""
        if self.arrived is None:
            return rows
        if rows.dim() == 1:
            return rows.index_select(0, self.arrived.order_A)
        return self.ops.permute(rows, self.arrived.order_A, self.arrived.place_A)

    def home(self, y_MD: Tensor, gate_TK: Tensor | None, work: WeightWork) -> Tensor:
        """See Route."""
        if self.arrived is not None:
            y_MD = self.ops.permute(y_MD, self.arrived.place_A, self.arrived.order_A)
        home_ND = exchange(y_MD, self.axis, self.received, self.sent, work.meanwhile).wait()
        if gate_TK is None:
            zeros_AD = home_ND.new_zeros((self.place_A.shape[0], home_ND.shape[1]))
            return zeros_AD.index_copy(0, self.kept_N, home_ND)
        return self.ops.unpermute(home_ND, gate_TK, self.kept_N, self.place_A)


def make_route(
    index_A: Tensor, kept_A: Tensor, num_experts: int, axis: Axis, ops: Ops = BY_DEFINITION
) -> VariableRoute:
    """The route of assignments that want `index_A` and have a slot where `kept_A`; dropped ones do not travel.

    One small all-to-all tells each rank how many rows to expect, one host read brings the numbers over.
    """
    lane_A = torch.where(kept_A, index_A, num_experts)
    order = ops.lane_order(lane_A, num_experts + 1)
    count_RX = order.count_L[:num_experts].view(axis.size, -1)
    ones = [1] * axis.size
    received_RX = start_all_to_all(count_RX, axis, ones, ones).wait()
    send, received = host_read("expert_splits", torch.stack([count_RX, received_RX]))
    counts = [sum(column) for column in zip(*received, strict=True)]
    return VariableRoute(
        axis=axis,
        kept_N=order.order_A[: sum(map(sum, send))],
        place_A=order.place_A,
        sent=[sum(row) for row in send],
        received=[sum(row) for row in received],
        counts=counts,
        arrived=_by_expert(received_RX, sum(counts), ops),
        ops=ops,
    )


def _by_expert(received_RX: Tensor, total: int, ops: Ops) -> Order | None:
    """Rows arrive by rank and then by expert; the stable order by expert and then by rank."""
    ranks, experts = received_RX.shape
    if ranks == 1 or experts == 1:
        return None
    expert_RX = torch.arange(experts, device=received_RX.device).repeat(ranks)
    return ops.lane_order(expert_RX.repeat_interleave(received_RX.flatten(), output_size=total), experts)
