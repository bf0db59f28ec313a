"""What one process passes to others, read off torch's own operations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import ProcessGroup


@dataclass
class Traffic:
    """Collectives of one kind on one axis.

    Args:
        count: calls.
        bytes: of the whole tensor, as the layers' formulas have it: all-reduce, reduce-scatter and all-to-all count
            what this rank puts in, all-gather what it gets out, send and receive what travels.
        wire: bytes that leave this rank when n ranks pass shares round a ring: 2 (n - 1) / n of an all-reduce,
            (n - 1) / n of an all-gather or reduce-scatter; of an all-to-all all but the rank's own rows; of a receive
            nothing.
    """

    count: int = 0
    bytes: int = 0
    wire: float = 0.0


@dataclass(frozen=True)
class Message:
    """One call: what it is called, the axis of its group (the group's description), and see Traffic."""

    op: str
    axis: str
    bytes: int
    wire: float


def size_of(tensors: Any) -> int:
    """Bytes of a tensor, or of all tensors in nested lists."""
    if isinstance(tensors, Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(size_of(tensor) for tensor in tensors)


def _ring(times: int) -> Callable[[int, ProcessGroup, Sequence[Any]], float]:
    return lambda size, group, _: times * size * (group.size() - 1) / group.size()


def _others(size: int, group: ProcessGroup, args: Sequence[Any]) -> float:
    """What an all-to-all sends to other ranks."""
    rows, splits = args[1].shape[0], args[4]
    own = splits[group.rank()] if splits else rows / group.size()
    return size * (1.0 - own / rows) if rows else 0.0


def _all(size: int, group: ProcessGroup, args: Sequence[Any]) -> float:
    return float(size)


def _nothing(size: int, group: ProcessGroup, args: Sequence[Any]) -> float:
    return 0.0


_OPS: dict[str, tuple[str, int, Callable[[int, ProcessGroup, Sequence[Any]], float]]] = {
    "allreduce_": ("all_reduce", 0, _ring(2)),
    "_allgather_base_": ("all_gather", 0, _ring(1)),
    "allgather_": ("all_gather", 0, _ring(1)),
    "_reduce_scatter_base_": ("reduce_scatter", 1, _ring(1)),
    "reduce_scatter_": ("reduce_scatter", 1, _ring(1)),
    "alltoall_base_": ("all_to_all", 1, _others),
    "broadcast_": ("broadcast", 0, _ring(1)),
    "send": ("send", 0, _all),
    "recv_": ("receive", 0, _nothing),
    "barrier": ("barrier", 0, _nothing),
}
"""By torch's name: ours, which argument is the whole tensor, and what leaves the rank."""


def message(func: Any, args: Sequence[Any]) -> Message:
    """The call of an operation of torch's `c10d`; AssertionError for one that no code of ours uses."""
    name = func.overloadpacket.__name__
    assert name in _OPS, f"a collective that is not counted: {name}"
    op, which, leaves = _OPS[name]
    group = ProcessGroup.unbox(next(arg for arg in args[1:] if isinstance(arg, torch.ScriptObject)))
    size = 0 if op == "barrier" else size_of(args[which])
    return Message(op, group.group_desc, size, leaves(size, group, args))
