"""Asynchronous transfers between ranks of one axis, told apart by tags."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megaswitch.topology.topology import Axis

CHANNELS = 4
"""One-way streets that a mailbox tells apart: what rises or falls in rank, with even and with odd tags."""


@dataclass(frozen=True)
class Letter:
    """A tensor that is expected; `wait` may be asked once."""

    wait: Callable[[], Tensor]


class Mailbox:
    """Neither sends nor expected receives wait; `Letter.wait` does. Transfers of a rank to itself stay in memory.

    gloo matches messages by tag. NCCL has no tags: it matches by order on each communicator, where a receive also
    holds up what is sent after it. So each of the `channels` is a one-way street with a group of its own (see
    `topology.make_channels`), and a schedule must send to a peer in the order in which that peer receives
    (`pipeline.simulate.check_order`).
    """

    def __init__(self, axis: Axis, channels: Sequence[dist.ProcessGroup | None] = (None,) * CHANNELS) -> None:
        """`channels` are groups over the axis, one a street; None stands for the axis's own group."""
        self.axis = axis
        self._groups = [channel or axis.group for channel in channels]
        self._sent: list[tuple[dist.Work, Tensor]] = []
        self._kept: dict[int, Tensor] = {}

    def _group(self, source: int, to: int, tag: int) -> dist.ProcessGroup | None:
        return self._groups[2 * (tag % 2) + (source < to)]

    def send(self, tensor: Tensor, to: int, tag: int) -> None:
        """Start sending to the axis's rank `to`."""
        tensor = tensor.detach().contiguous()
        if to == self.axis.rank:
            self._kept[tag] = tensor
            return
        group = self._group(self.axis.rank, to, tag)
        work = dist.isend(tensor, self.axis.ranks[to], group=group, tag=tag)
        assert work is not None
        self._sent = [pair for pair in self._sent if not pair[0].is_completed()]  # lets go of what has left
        self._sent.append((work, tensor))

    def expect(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, source: int, tag: int) -> Letter:
        """The tensor that the axis's rank `source` sends under this tag, whenever it does."""
        if source == self.axis.rank:
            return Letter(lambda: self._kept.pop(tag))
        out = torch.empty(tuple(shape), dtype=dtype, device=device)
        work = dist.irecv(out, self.axis.ranks[source], group=self._group(source, self.axis.rank, tag), tag=tag)
        assert work is not None

        def wait() -> Tensor:
            with torch.profiler.record_function(f"wait:receive:{self.axis.name}"):
                work.wait()
            return out

        return Letter(wait)

    def flush(self) -> None:
        """Wait until everything sent has left, and let go of it."""
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()
