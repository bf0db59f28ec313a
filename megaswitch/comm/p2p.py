"""Asynchronous transfers between ranks of one axis, told apart by tags."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megaswitch.topology.topology import Axis


class Mailbox:
    """Sends never wait; receives wait where they are asked for. Transfers of a rank to itself stay in memory.

    gloo matches messages by tag. NCCL has no tags and matches by order, so a schedule must send to a peer in
    the order in which that peer receives (`pipeline.simulate` checks it).
    """

    def __init__(self, axis: Axis) -> None:
        self.axis = axis
        self._sent: list[tuple[dist.Work, Tensor]] = []
        self._kept: dict[int, Tensor] = {}

    def send(self, tensor: Tensor, to: int, tag: int) -> None:
        """Start sending to the axis's rank `to`."""
        tensor = tensor.detach().contiguous()
        if to == self.axis.rank:
            self._kept[tag] = tensor
            return
        work = dist.isend(tensor, self.axis.ranks[to], group=self.axis.group, tag=tag)
        assert work is not None
        self._sent.append((work, tensor))

    def receive(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, source: int, tag: int) -> Tensor:
        """The tensor that the axis's rank `source` sends under this tag; waits for it."""
        if source == self.axis.rank:
            return self._kept.pop(tag)
        out = torch.empty(tuple(shape), dtype=dtype, device=device)
        work = dist.irecv(out, self.axis.ranks[source], group=self.axis.group, tag=tag)
        assert work is not None
        work.wait()
        return out

    def flush(self) -> None:
        """Wait until everything sent has left, and let go of it."""
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()
