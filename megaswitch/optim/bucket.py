"""One flat bucket: parameters that are reduced, divided and updated alike, their gradients, and this rank's segment."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megaswitch.comm.collectives import all_gather, all_reduce_, reduce_scatter
from megaswitch.params.boxes import Box, boxes
from megaswitch.params.spec import ParamSpec
from megaswitch.topology.grid import AxisName
from megaswitch.topology.topology import Axis
from megaswitch.utils.precision import at_least_float32


@dataclass(frozen=True)
class Kind:
    """What the parameters of a bucket have in common.

    Args:
        data_axis: the axis over which they are replicated, gradients summed and (ZeRO) segments divided.
        partial: further axes over which gradients are summed.
        cut: axes that cut the matrices, over which optimizer statistics are summed.
        replicated: axes besides the data axis along which ranks hold the same.
        owners: pipeline ranks that share the parameters; empty when it is only this one.
        decay: whether weight decay applies.
    """

    data_axis: AxisName
    partial: tuple[AxisName, ...]
    cut: tuple[AxisName, ...]
    replicated: tuple[AxisName, ...]
    owners: tuple[int, ...]
    decay: bool


@dataclass(frozen=True)
class Entry:
    """A parameter in a bucket: `box` is this rank's part in global coordinates, from element `start`."""

    spec: ParamSpec
    box: Box
    start: int


@dataclass(frozen=True)
class Piece:
    """A box (global coordinates) of a parameter that lies in this rank's segment, at elements [start, stop) of it."""

    entry: Entry
    box: Box
    start: int
    stop: int

    def view(self, segment: Tensor) -> Tensor:
        """The piece of a flat tensor of the segment's size, in the box's shape."""
        return segment[self.start : self.stop].view(self.box.shape)


@dataclass(frozen=True)
class Axes:
    """The axes of a bucket's kind, resolved: `data` divides it when `divided`, `sums` are further sums."""

    data: Axis
    divided: bool
    sums: tuple[Axis, ...]
    cut: tuple[Axis, ...]
    speaks: bool
    """Whether this rank is the one that counts and saves what ranks besides the data axis hold alike."""

    @property
    def parts(self) -> int:
        """Segments of the bucket."""
        return self.data.size if self.divided else 1

    @property
    def statistics(self) -> tuple[Axis, ...]:
        """Axes over which partial statistics of a matrix are summed."""
        return (self.data, *self.cut) if self.divided else self.cut

    @property
    def primary(self) -> bool:
        """Whether this rank counts and saves its segment."""
        return self.speaks and (self.divided or self.data.first)


class Bucket:
    """Flat storage of parameters (compute type) and gradients (at least float32), cut into equal segments."""

    def __init__(
        self, kind: Kind, entries: Sequence[Entry], axes: Axes, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.kind, self.entries, self.axes = kind, tuple(entries), axes
        used = entries[-1].start + entries[-1].box.size
        self.segment_size = -(-used // axes.parts)
        index = axes.data.rank if axes.divided else 0
        self.first = index * self.segment_size
        size = self.segment_size * axes.parts
        self.weights = torch.zeros(size, dtype=dtype, device=device)
        self.grads = torch.zeros(size, dtype=at_least_float32(dtype), device=device)
        wide = self.grads.dtype == dtype
        own = self.weights[self.first : self.first + self.segment_size]
        self.master = own if wide else own.to(self.grads.dtype)
        self.grad_segment = self.grads[self.first : self.first + self.segment_size]
        self.params = {entry.spec.name: self._parameter(entry) for entry in entries}
        self.pieces = self._pieces()

    def _parameter(self, entry: Entry) -> nn.Parameter:
        run = slice(entry.start, entry.start + entry.box.size)
        parameter = nn.Parameter(self.weights[run].view(entry.box.shape))
        main_grad = self.grads[run].view(entry.box.shape)
        if main_grad.dtype == parameter.dtype:
            parameter.grad = main_grad  # autograd adds into it in place
        else:
            hook = parameter.register_post_accumulate_grad_hook
            hook(lambda p: _move_grad(p, main_grad))  # type: ignore[no-untyped-call]
        return parameter

    def _pieces(self) -> list[Piece]:
        last, pieces = self.first + self.segment_size, []
        for entry in self.entries:
            start = max(self.first, entry.start)
            stop = min(last, entry.start + entry.box.size)
            at = start - self.first
            for box in boxes(start - entry.start, stop - entry.start, entry.box.shape):
                pieces.append(Piece(entry, box.within(entry.box), at, at + box.size))
                at += box.size
        return pieces

    def reduce(self) -> None:
        """Sum gradients over all ranks that have a part; `grad_segment` becomes this rank's segment of the sum."""
        if self.axes.divided:
            self.grad_segment = reduce_scatter(self.grads, self.axes.data)
        else:
            self.grad_segment = all_reduce_(self.grads, self.axes.data)
        for axis in self.axes.sums:
            all_reduce_(self.grad_segment, axis)

    def pull_master(self) -> None:
        """Take the masters from the weights (after initialisation)."""
        own = self.weights[self.first : self.first + self.segment_size]
        if self.master.data_ptr() != own.data_ptr():
            self.master.copy_(own)

    def publish(self) -> None:
        """Bring the masters of all segments into the weights of all ranks."""
        own = self.weights[self.first : self.first + self.segment_size]
        if self.master.data_ptr() != own.data_ptr():
            own.copy_(self.master)
        if self.axes.divided and self.axes.data.size > 1:
            self.weights.copy_(all_gather(own.clone(), self.axes.data))


def _move_grad(parameter: Tensor, main_grad: Tensor) -> None:
    assert parameter.grad is not None
    main_grad.add_(parameter.grad)
    parameter.grad = None
