"""What Adafactor's two published rules keep and sum, and where; derived from specs, so that no layout changes it.

A rule says two things of a parameter: which two of its dimensions are factored, and which of its elements form one
unit whose root mean squares count. Everything else is common: a factored dimension has its whole extent on every
rank, any other only this rank's part; each rank adds what its pieces hold, in global coordinates, and the sum over
the axes that cut the summed dimensions (and over ZeRO's) is that of the whole tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from megaswitch.comm.collectives import all_reduce_
from megaswitch.optim.bucket import Bucket, Entry, Piece
from megaswitch.optim.config import AdafactorRule, OptimConfig
from megaswitch.params.boxes import Box
from megaswitch.params.spec import ParamSpec
from megaswitch.topology.grid import AxisName
from megaswitch.topology.topology import Topology

# B matrices of R rows and C columns, U units

AxisNames = tuple[AxisName, ...]
Flats = dict[AxisNames, Tensor]
"""One flat tensor [..., numbers] for each set of axes that its numbers are summed over."""


def factored_dims(spec: ParamSpec, rule: AdafactorRule, min_dim: int) -> tuple[int, int] | None:
    """The two factored dimensions, the earlier first, or None. Decided from the global shape.

    "t5x": experts always, over their last two; else matrices with both sides at least `min_dim`. "mtf"
    (mesh-tensorflow): the two largest dimensions of any tensor, the earlier on ties, when both reach `min_dim`; so
    the expert dimension is factored where there are more experts than one of the sides is long.
    """
    dims = len(spec.shape)
    if rule == "t5x" and spec.expert:
        return dims - 2, dims - 1
    if dims < 2 or (rule == "t5x" and dims != 2):
        return None
    larger, smaller = sorted(range(dims), key=lambda dim: -spec.shape[dim])[:2]
    if spec.shape[smaller] < min_dim:
        return None
    return min(larger, smaller), max(larger, smaller)


def unit_is_expert(spec: ParamSpec, rule: AdafactorRule) -> bool:
    """Whether root mean squares are taken expert by expert ("t5x") rather than over the whole tensor ("mtf")."""
    return spec.expert and rule == "t5x"


@dataclass(frozen=True)
class Place:
    """A tensor's place in `Flats`."""

    axes: AxisNames
    start: int
    shape: tuple[int, ...]

    def view(self, flats: Flats) -> Tensor:
        """The tensor, [..., *shape]."""
        run = flats[self.axes].narrow(-1, self.start, prod(self.shape))
        return run.view(*run.shape[:-1], *self.shape)


class Places:
    """Hands out places, and makes and sums the flat tensors that hold them."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.sizes: dict[AxisNames, int] = {}

    def take(self, axes: AxisNames, shape: Sequence[int]) -> Place:
        """A place for a tensor that is summed over `axes`."""
        axes = tuple(axis for axis in axes if self.topology.axis(axis).size > 1)
        place = Place(axes, self.sizes.get(axes, 0), tuple(shape))
        self.sizes[axes] = place.start + prod(place.shape)
        return place

    def zeros(self, like: Tensor, *leading: int) -> Flats:
        """Zeros for all places, of the type and on the device of `like`."""
        return {axes: like.new_zeros((*leading, size)) for axes, size in self.sizes.items()}

    def sum_(self, flats: Flats) -> None:
        """Sum over each flat tensor's axes: one all-reduce an axis and set of axes."""
        for axes, flat in flats.items():
            for axis in axes:
                all_reduce_(flat, self.topology.axis(axis))


@dataclass(frozen=True)
class Means:
    """Running means of a parameter's squared gradients over dimension `over`, which their shape leaves out; `kept` is
    where in that shape the other factored dimension is."""

    over: int
    kept: int
    length: int
    """Of the dimension that they are means over."""
    global_shape: tuple[int, ...]
    box: Box
    """This rank's part of `global_shape`."""
    place: Place

    def of(self, piece: Piece) -> tuple[slice, ...]:
        """Where in this rank's means those of a piece lie."""
        offset, shape = _without(self.over, piece.box.offset), _without(self.over, piece.box.shape)
        return tuple(slice(o - b, o - b + n) for o, b, n in zip(offset, self.box.offset, shape, strict=True))

    def lines(self, flats: Flats, piece: Piece | None = None) -> Tensor:
        """Those of a piece, or all of this rank's: [B, R or C]."""
        view = self.place.view(flats)
        lines = (view if piece is None else view[self.of(piece)]).movedim(self.kept, -1)
        return lines if lines.dim() > 1 else lines.unsqueeze(0)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a bucket: its pieces in this rank's segment, its means, and its units' sums of squares.

    `factored` are means over the later factored dimension and over the earlier, None when it is not factored; `sums` is
    a number for each unit of this rank. A parameter that is `alone` shares no statistic with another rank, and its
    units are its matrices, which lie here one after the other.
    """

    entry: Entry
    pieces: list[Piece]
    dims: tuple[int, int] | None
    factored: tuple[Means, Means] | None
    sums: Place
    unit_elements: int
    by_expert: bool
    alone: bool

    def units(self, piece: Piece) -> slice:
        """The units, of this rank's, that a piece belongs to."""
        if not self.by_expert:
            return slice(0, 1)
        first = piece.box.offset[0] - self.entry.box.offset[0]
        return slice(first, first + piece.box.shape[0])

    def matrices(self, piece: Piece, segment: Tensor) -> Tensor:
        """A piece of a flat tensor of the segment's size as matrices of the factored dimensions, [B, R, C]."""
        assert self.dims is not None
        view = piece.view(segment).movedim(self.dims, (-2, -1))
        return view if view.dim() > 2 else view.unsqueeze(0)


@dataclass(frozen=True)
class Plan:
    """A bucket's parameters, and the places for what they sum over ranks and for what they keep `own`."""

    parameters: list[Parameter]
    means: Places
    sums: Places
    own: Places


def plan_parameters(bucket: Bucket, config: OptimConfig, topology: Topology) -> Plan:
    """How a bucket's parameters are updated."""
    plan = Plan([], Places(topology), Places(topology), Places(topology))
    plan.parameters.extend(_plan(bucket, entry, config, plan) for entry in bucket.entries)
    return plan


def _plan(bucket: Bucket, entry: Entry, config: OptimConfig, plan: Plan) -> Parameter:
    spec, rule = entry.spec, config.adafactor_rule
    divided: AxisNames = (bucket.kind.data_axis,) if bucket.axes.divided else ()
    by_expert = unit_is_expert(spec, rule)
    dims = factored_dims(spec, rule, config.min_dim_to_factor)
    over_means = divided + tuple(axis for axis, dim in spec.shards if dims is not None and dim in dims)
    over_units = divided + tuple(axis for axis, dim in spec.shards if not (by_expert and dim == 0))
    matrices = dims is not None and (by_expert or len(spec.shape) == 2)
    alone = matrices and not any(plan.own.topology.axis(axis).size > 1 for axis in (*over_means, *over_units))
    places = plan.own if alone else plan.means
    factored = dims and (_means(entry, dims, 1, over_means, places), _means(entry, dims, 0, over_means, places))
    return Parameter(
        entry=entry,
        pieces=[piece for piece in bucket.pieces if piece.entry is entry],
        dims=dims,
        factored=factored,
        sums=plan.sums.take(over_units, (entry.box.shape[0] if by_expert else 1,)),
        unit_elements=spec.size // spec.shape[0] if by_expert else spec.size,
        by_expert=by_expert,
        alone=alone,
    )


def _means(entry: Entry, dims: tuple[int, int], which: int, axes: AxisNames, places: Places) -> Means:
    over, whole = dims[which], entry.spec.shape
    offset = tuple(0 if d in dims else start for d, start in enumerate(entry.box.offset))
    shape = tuple(whole[d] if d in dims else size for d, size in enumerate(entry.box.shape))
    box = Box(_without(over, offset), _without(over, shape))
    kept = dims[0] if which == 1 else dims[1] - 1  # the later one moves up by the one left out
    return Means(over, kept, whole[over], _without(over, whole), box, places.take(axes, box.shape))


def _without(dim: int, numbers: Sequence[int]) -> tuple[int, ...]:
    return (*numbers[:dim], *numbers[dim + 1 :])
