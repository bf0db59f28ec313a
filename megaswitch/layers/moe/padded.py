"""The route with fixed splits: every expert gets all its slots from every rank, empty ones filled with zeros.

Nothing has to be read by the host and all shapes are known from the configuration, at the price of what the empty
slots cost to send and to multiply.

A assignments, D width, E experts, X experts of this rank, R ranks on the ep axis, C slots of an expert on each rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megaswitch.comm.functions import Arriving, exchange
from megaswitch.layers.weight_work import WeightWork
from megaswitch.ops.reference.permute import weigh
from megaswitch.topology.topology import Axis


@dataclass(frozen=True)
class PaddedRoute:
    """A `dispatch.Route` with E * C slots on each rank; `slot_A` is each assignment's, E * C where it is dropped."""

    axis: Axis
    slot_A: Tensor
    num_experts: int
    slots: int

    @property
    def counts(self) -> list[int]:
        """Received rows of each of this rank's experts."""
        return [self.axis.size * self.slots] * (self.num_experts // self.axis.size)

    @property
    def _splits(self) -> list[int]:
        return [self.num_experts // self.axis.size * self.slots] * self.axis.size

    def send(self, x_TD: Tensor, work: WeightWork) -> Arriving:
        """See Route."""
        choices = self.slot_A.shape[0] // max(1, x_TD.shape[0])
        x_AD = x_TD if choices <= 1 else x_TD.repeat_interleave(choices, 0)
        return exchange(self._in_slots(x_AD), self.axis, self._splits, self._splits, work.meanwhile)

    def send_numbers(self, numbers_A: Tensor) -> Arriving:
        """See Route."""
        return exchange(self._in_slots(numbers_A), self.axis, self._splits, self._splits)

    def _in_slots(self, x: Tensor) -> Tensor:
        """Dropped assignments share one more row, which does not travel."""
        rows = self.num_experts * self.slots
        return x.new_zeros((rows + 1, *x.shape[1:])).index_copy(0, self.slot_A, x)[:rows]

    def by_expert(self, rows_MD: Tensor) -> Tensor:
        """See Route."""
        return self._swap(rows_MD, self.axis.size)

    def home(self, y_MD: Tensor, gate_TK: Tensor | None, work: WeightWork) -> Tensor:
        """See Route."""
        by_rank = self._swap(y_MD, self.num_experts // self.axis.size)
        home = exchange(by_rank, self.axis, self._splits, self._splits, work.meanwhile).wait()
        y_AD = torch.cat([home, home.new_zeros((1, home.shape[1]))]).index_select(0, self.slot_A)
        return y_AD if gate_TK is None else weigh(y_AD, gate_TK)

    def _swap(self, rows: Tensor, outer: int) -> Tensor:
        """From [outer, inner, C] rows to [inner, outer, C]."""
        return rows.view(outer, -1, self.slots, *rows.shape[1:]).transpose(0, 1).flatten(0, 2)


def make_padded_route(index_A: Tensor, kept_A: Tensor, num_experts: int, slots: int, axis: Axis) -> PaddedRoute:
    """The route of assignments that want `index_A` and are served where `kept_A`, of which each expert has at most
    `slots`."""
    lane_A = torch.where(kept_A, index_A, num_experts)
    lanes = torch.arange(num_experts + 1, device=lane_A.device)
    order_A = torch.argsort(lane_A, stable=True)
    sorted_A = lane_A[order_A]
    place_A = torch.arange(lane_A.shape[0], device=lane_A.device) - torch.searchsorted(sorted_A, lanes)[sorted_A]
    slot_A = torch.where(sorted_A < num_experts, sorted_A * slots + place_A, num_experts * slots)
    return PaddedRoute(axis, torch.empty_like(slot_A).index_copy_(0, order_A, slot_A), num_experts, slots)
