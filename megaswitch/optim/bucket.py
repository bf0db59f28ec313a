"""One flat bucket: parameters that are reduced, divided and updated alike, their gradients, and this rank's segment."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megaswitch.comm.collectives import (
    Pending,
    all_reduce_,
    start_all_gather,
    start_all_reduce_,
    start_reduce_scatter,
)
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


@dataclass(frozen=True)
class Types:
    """Types of a bucket's storage: weights as layers find them, gradients as they are added and summed over ranks,
    and masters, which the optimizer updates. Where weights are of the masters' type they are the masters."""

    weights: torch.dtype
    grads: torch.dtype
    master: torch.dtype


def types_for(compute: torch.dtype, *, narrow_grads: bool = False, masters_only: bool = False) -> Types:
    """Storage for a compute type: all else at least float32, unless gradients are to be bfloat16 (`narrow_grads`) or
    the masters the only copy of the weights, cast where they are used (`masters_only`)."""
    wide = at_least_float32(compute)
    return Types(wide if masters_only else compute, torch.bfloat16 if narrow_grads else wide, wide)


class Bucket:
    """Flat storage of parameters and gradients, cut into equal segments.

    On the data axis, n elements and parts of equal size: a reduce-scatter of n gradients and an all-gather of n weights
    a step (an all-reduce of n gradients where the bucket is not divided); on further axes of which each has a part of
    the sum, all-reduces of a segment.

    Gradients are reduced once nothing more is added to them, while other work goes on, and updated weights are
    gathered while the optimizer and the next step's forward go on.
    """

    def __init__(
        self, kind: Kind, entries: Sequence[Entry], axes: Axes, types: Types, device: torch.device
    ) -> None:
        self.kind, self.entries, self.axes = kind, tuple(entries), axes
        used = entries[-1].start + entries[-1].box.size
        self.segment_size = -(-used // axes.parts)
        index = axes.data.rank if axes.divided else 0
        self.first = index * self.segment_size
        size = self.segment_size * axes.parts
        self.weights = torch.zeros(size, dtype=types.weights, device=device)
        self.grads = torch.zeros(size, dtype=types.grads, device=device)
        own = self._own(self.weights)
        self._separate = types.weights != types.master
        self.master = own.to(types.master) if self._separate else own
        self.grad_segment = self._own(self.grads)
        self.params = {entry.spec.name: self._parameter(entry) for entry in entries}
        self.pieces = self._pieces()
        self._growing = set(self.params)
        self._rounded = False
        self._reducing: Pending | None = None
        self._gathering: Pending | None = None

    def _own(self, flat: Tensor) -> Tensor:
        """This rank's segment of a flat tensor."""
        return flat[self.first : self.first + self.segment_size]

    def _parameter(self, entry: Entry) -> nn.Parameter:
        run = slice(entry.start, entry.start + entry.box.size)
        parameter = nn.Parameter(self.weights[run].view(entry.box.shape))
        main_grad = self.grads[run].view(entry.box.shape)
        parameter.main_grad = main_grad  # type: ignore[attr-defined]  # for layers that add products into it
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

    def zero_grad(self) -> None:
        """Forget all gradients: a step begins."""
        self.grads.zero_()
        self._growing, self._reducing = set(self.params), None

    def gradient_done(self, name: str) -> None:
        """Nothing more will be added to this parameter's gradient; with the last one the reduction begins."""
        self._growing.discard(name)
        if not self._growing:
            self._begin_reduce()

    def _begin_reduce(self) -> Pending:
        if self._reducing is None:
            if self.axes.divided:  # in place: the sum takes this rank's segment, the others' are of no more use
                self._reducing = start_reduce_scatter(self.grads, self.axes.data, out=self._own(self.grads))
            else:
                self._reducing = start_all_reduce_(self.grads, self.axes.data)
        return self._reducing

    def reduce(self) -> None:
        """Sum gradients over all ranks that have a part; `grad_segment` then holds this rank's segment of the sum."""
        self._begin_reduce().wait()
        for axis in self.axes.sums:
            all_reduce_(self.grad_segment, axis)

    def wide_gradient(self) -> Tensor:
        """This rank's segment of the gradient in the masters' type: itself, or a copy where it is narrower."""
        return self.grad_segment.to(self.master.dtype)

    def pull_master(self) -> None:
        """Take the masters from the weights (after initialisation)."""
        if self._separate:
            self.master.copy_(self._own(self.weights))

    def rounding(self) -> Tensor | None:
        """For an optimizer that rounds the masters while it updates them: this rank's segment of the weights, which
        `begin_publish` then finds as they are to be; None where they are the masters."""
        if not self._separate:
            return None
        self.await_weights()
        self._rounded = True
        return self._own(self.weights)

    def begin_publish(self) -> None:
        """Begin to bring the masters of all segments into the weights of all ranks."""
        own, rounded = self._own(self.weights), self._rounded or not self._separate
        self._rounded = False
        if self.axes.divided:
            part = own.clone() if rounded else self.master.to(own.dtype)
            self._gathering = start_all_gather(part, self.axes.data, out=self.weights)
        elif not rounded:
            own.copy_(self.master)

    def await_weights(self) -> None:
        """Return when all weights are there."""
        if self._gathering is not None:
            self._gathering.wait()
            self._gathering = None


def _move_grad(parameter: Tensor, main_grad: Tensor) -> None:
    """Called also where a layer has added the gradient itself and left none to autograd."""
    if parameter.grad is not None:
        main_grad.add_(parameter.grad)
        parameter.grad = None
