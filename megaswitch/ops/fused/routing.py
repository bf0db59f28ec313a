"""Queues, counts and orders of tokens by expert with a counter an expert; integers without gradient.

G groups, S tokens of a group, K choices a token, E experts, A rows.
"""

from typing import Any

from torch import Tensor

from megaswitch.ops.library import Kernel
from megaswitch.ops.reference.routing import Order, Queues


def _queue_shapes(index: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    return index.new_empty(index.shape), index.new_empty(index.shape[0], num_experts)


def _count_shapes(index: Tensor, num_experts: int) -> Tensor:
    return index.new_empty(index.shape[0], index.shape[2], num_experts)


def _order_shapes(lane: Tensor, lanes: int) -> tuple[Tensor, Tensor, Tensor]:
    return lane.new_empty(lane.shape), lane.new_empty(lane.shape), lane.new_empty(lanes)


KERNELS = (
    Kernel("queue", "(Tensor index, int num_experts) -> (Tensor, Tensor)", _queue_shapes),
    Kernel("count_choices", "(Tensor index, int num_experts) -> Tensor", _count_shapes),
    Kernel("lane_order", "(Tensor lane, int lanes) -> (Tensor, Tensor, Tensor)", _order_shapes),
)


def queue(kernels: Any, index_GS: Tensor, num_experts: int) -> Queues:
    """`ops.reference.routing.queue` by these kernels."""
    return Queues(*kernels.queue(index_GS, num_experts))


def count_choices(kernels: Any, index_GSK: Tensor, num_experts: int) -> Tensor:
    """`ops.reference.routing.count_choices` by these kernels."""
    out: Tensor = kernels.count_choices(index_GSK, num_experts)
    return out


def lane_order(kernels: Any, lane_A: Tensor, lanes: int) -> Order:
    """`ops.reference.routing.lane_order` by these kernels."""
    return Order(*kernels.lane_order(lane_A, lanes))
