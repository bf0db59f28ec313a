"""Which tokens get a slot: first come, first served, inside each routing group.

G groups, S tokens of a group, E experts.
"""

from typing import NamedTuple

from torch import Tensor

from megaswitch.ops.reference.routing import queue


class Plan(NamedTuple):
    """`position_GS`: place in the expert's queue, from 0; `kept_GS`: whether that place is within the capacity
    (never for unrouted tokens); `count_GE`: tokens that wanted each expert, before dropping."""

    position_GS: Tensor
    kept_GS: Tensor
    count_GE: Tensor


def make_plan(index_GS: Tensor, num_experts: int, capacity: int | None) -> Plan:
    """The plan for tokens that want `index_GS` (-1: not routed); no capacity keeps them all."""
    position_GS, count_GE = queue(index_GS, num_experts)
    kept_GS = index_GS >= 0
    if capacity is not None:
        kept_GS = kept_GS & (position_GS < capacity)
    return Plan(position_GS, kept_GS, count_GE)
