"""Which choices get a slot, inside each routing group: by rounds of choices, first come, first served.

G groups, S tokens of a group, K choices a token, E experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from megaswitch.ops.ops import BY_DEFINITION, Ops
from megaswitch.ops.reference.routing import Queues


class Plan(NamedTuple):
    """`position_GSK`: the slot of each choice in its expert, from 0; `kept_GSK`: whether the choice is served
    (its place is within the capacity; never for choices that are not wanted)."""

    position_GSK: Tensor
    kept_GSK: Tensor


def make_plan(
    index_GSK: Tensor,
    num_experts: int,
    capacity: int | None,
    *,
    priority_GS: Tensor | None = None,
    exclusive: bool = False,
    first: Queues | None = None,
    ops: Ops = BY_DEFINITION,
) -> Plan:
    """The plan for tokens that want `index_GSK` (-1: nothing); no capacity keeps them all.

    Later choices queue behind the served earlier ones. With `exclusive` a token that is served takes no further
    part. Tokens come in their order, or with `priority_GS` in falling order of it (batch-prioritised routing).
    `first`: the queues of first choices, where they are known.
    """
    filled_GE = index_GSK.new_zeros(index_GSK.shape[0], num_experts)
    served_GS = torch.zeros_like(index_GSK[..., 0], dtype=torch.bool)
    positions, kepts = [], []
    for round_ in range(index_GSK.shape[2]):
        index_GS = index_GSK[..., round_]
        if exclusive and round_ > 0:
            index_GS = index_GS.masked_fill(served_GS, -1)
        if first is not None and round_ == 0 and priority_GS is None:
            place_GS, count_GE = first
        else:
            place_GS, count_GE = _queue(index_GS, num_experts, priority_GS, ops)
        if round_ > 0:
            place_GS = place_GS + filled_GE.gather(1, index_GS.clamp(min=0))
        kept_GS = index_GS >= 0
        filled_GE = filled_GE + count_GE
        if capacity is not None:
            kept_GS = kept_GS & (place_GS < capacity)
            filled_GE = filled_GE.clamp(max=capacity)
        served_GS = served_GS | kept_GS
        positions.append(place_GS)
        kepts.append(kept_GS)
    return Plan(torch.stack(positions, -1), torch.stack(kepts, -1))


def _queue(index_GS: Tensor, num_experts: int, priority_GS: Tensor | None, ops: Ops) -> Queues:
    """`ops.queue`, in falling order of priority where there is one."""
    if priority_GS is None:
        return ops.queue(index_GS, num_experts)
    order_GS = torch.sort(priority_GS, dim=1, descending=True, stable=True).indices
    place_GS, count_GE = ops.queue(index_GS.gather(1, order_GS), num_experts)
    return Queues(torch.zeros_like(place_GS).scatter(1, order_GS, place_GS), count_GE)
