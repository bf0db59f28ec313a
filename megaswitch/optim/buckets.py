"""All parameters of one rank, in buckets derived from their specs."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from math import prod

import torch
from torch import nn

from megaswitch.optim.bucket import Axes, Bucket, Entry, Kind, Piece, types_for
from megaswitch.params.derive import cut_axes, local_box, partial_axes, replicated_axes
from megaswitch.params.init import initialise_
from megaswitch.params.spec import ParamSpec
from megaswitch.topology.topology import Axis, Topology

Owners = Mapping[str, tuple[int, ...]]
"""Pipeline ranks that hold each parameter, by name."""


def _kind(spec: ParamSpec, topology: Topology, owners: tuple[int, ...]) -> Kind:
    grid = topology.grid
    return Kind(
        data_axis=spec.data_axis,
        partial=partial_axes(spec, grid, topology.sequence_parallel),
        cut=cut_axes(spec, grid),
        replicated=tuple(a for a in replicated_axes(spec, grid) if a != spec.data_axis),
        owners=owners if len(owners) > 1 else (),
        decay=spec.decay,
    )


def _entries(specs: Iterable[ParamSpec], topology: Topology) -> list[Entry]:
    entries, start = [], 0
    for spec in specs:
        entry = Entry(spec, local_box(spec, topology.grid, topology.rank), start)
        entries.append(entry)
        start += entry.box.size
    return entries


def _batches(specs: Iterable[ParamSpec], topology: Topology, limit: int) -> Iterator[list[ParamSpec]]:
    """Runs of parameters of at most `limit` elements each; a larger parameter has a run of its own.

    A parameter counts by its even share, so that ranks whose parts differ by an element cut alike.
    """
    run: list[ParamSpec] = []
    size = 0
    for spec in specs:
        more = spec.size // prod(topology.grid.size(axis) for axis, _ in spec.shards)
        if run and size + more > limit:
            yield run
            run, size = [], 0
        run.append(spec)
        size += more
    if run:
        yield run


def _by_kind(specs: Mapping[str, ParamSpec], owners: Owners, topology: Topology) -> dict[Kind, list[ParamSpec]]:
    """Parameters by kind, in the order in which they are used. What several pipeline ranks share comes first, and in
    the order of names: their stages list it in different orders, but they must cut and reduce it alike."""
    kinds: dict[Kind, list[ParamSpec]] = {}
    shared = sorted((name for name in specs if len(owners[name]) > 1), key=lambda name: (owners[name], name))
    for name in [*shared, *(name for name in specs if len(owners[name]) == 1)]:
        kinds.setdefault(_kind(specs[name], topology, owners[name]), []).append(specs[name])
    return kinds


class Buckets:
    """Storage, reduction and publication of all parameters that this rank holds."""

    def __init__(
        self,
        specs: Mapping[str, ParamSpec],
        owners: Owners,
        topology: Topology,
        dtype: torch.dtype,
        *,
        zero: bool = True,
        narrow_grads: bool = False,
        masters_only: bool = False,
        bucket_elements: int = 1 << 25,
        timeout: timedelta | None = None,
    ) -> None:
        """`specs` are those of this rank, `owners` of the whole model. `dtype` is the compute type; see `types_for` for
        what follows from it."""
        types = types_for(dtype, narrow_grads=narrow_grads, masters_only=masters_only)
        kinds = _by_kind(specs, owners, topology)
        shared = sorted({ranks for ranks in owners.values() if len(ranks) > 1})
        self.peers = {ranks: topology.pipeline_peers(ranks, timeout) for ranks in shared}
        self.topology, self.specs = topology, dict(specs)
        self.buckets = [
            Bucket(kind, _entries(run, topology), self._axes(kind, zero), types, topology.device)
            for kind, members in kinds.items()
            for run in _batches(members, topology, bucket_elements)
        ]
        self.params: dict[str, nn.Parameter] = {n: p for b in self.buckets for n, p in b.params.items()}
        self._bucket_of = {name: bucket for bucket in self.buckets for name in bucket.params}

    def _axes(self, kind: Kind, zero: bool) -> Axes:
        topology = self.topology
        peers: list[Axis] = [self.peers[kind.owners]] if kind.owners else []
        others = [*(topology.axis(a) for a in kind.replicated), *peers]
        return Axes(
            data=topology.axis(kind.data_axis),
            divided=zero and topology.axis(kind.data_axis).size > 1,
            sums=(*(topology.axis(a) for a in kind.partial), *peers),
            cut=tuple(topology.axis(a) for a in kind.cut),
            speaks=all(axis.first for axis in others),
        )

    def initialise(self, seed: int) -> None:
        """Draw all weights, one tensor (one expert) at a time."""
        for bucket in self.buckets:
            for entry in bucket.entries:
                initialise_(bucket.params[entry.spec.name], entry.spec, entry.box, seed)
            bucket.pull_master()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for bucket in self.buckets:
            bucket.zero_grad()

    def gradient_done(self, name: str) -> None:
        """Nothing more will be added to a parameter's gradient in this step; full buckets begin their reduction."""
        self._bucket_of[name].gradient_done(name)

    def await_weights(self, names: Iterable[str]) -> None:
        """Return when these parameters hold the weights of the last update."""
        for name in names:
            self._bucket_of[name].await_weights()

    def reduce(self) -> None:
        """Sum all gradients; each rank keeps its segments of the sums."""
        for bucket in self.buckets:
            bucket.reduce()

    def publish(self) -> None:
        """Bring updated masters into the weights of all ranks."""
        for bucket in self.buckets:
            bucket.begin_publish()
        self.await_weights(self.params)

    def pieces(self) -> Iterator[tuple[Bucket, Piece]]:
        """Every piece of every segment of this rank."""
        for bucket in self.buckets:
            for piece in bucket.pieces:
                yield bucket, piece
