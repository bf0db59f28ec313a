"""Compares what several ranks hold alike, bit for bit: a rank that differs has computed or remembered wrongly."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megaswitch.comm.collectives import all_gather, all_reduce_
from megaswitch.optim.bucket import Bucket
from megaswitch.topology.topology import Axis
from megaswitch.train.system import System
from megaswitch.utils.errors import PeerLostError
from megaswitch.utils.host import host_read

_CHUNK = 1 << 22
_CYCLE = 65521


@dataclass(frozen=True)
class _Copy:
    """A tensor that all ranks of an axis hold alike."""

    name: str
    tensor: Tensor
    axis: Axis


def checksum(x: Tensor) -> Tensor:
    """Two int64 numbers of a flat tensor's bits: a flipped bit changes the first, exchanged elements the second.

    Integers are added up, so that the order does not matter.
    """
    bits = x.detach().contiguous().view(torch.int16)
    total = torch.zeros(2, dtype=torch.int64, device=x.device)
    for start in range(0, bits.numel(), _CHUNK):
        part = bits[start : start + _CHUNK].to(torch.int64)
        places = torch.arange(start, start + part.numel(), device=x.device) % _CYCLE + 1
        total += torch.stack([part.sum(), (part * places).sum()])
    return total


def _axes(system: System, bucket: Bucket, *, data: bool) -> list[Axis]:
    """Axes along which a bucket's weights (with `data`), or the masters of its segment, are the same."""
    kind, topology = bucket.kind, system.topology
    axes = [topology.axis(name) for name in kind.replicated]
    axes += [system.buckets.peers[kind.owners]] if kind.owners else []
    axes += [bucket.axes.data] if data else []
    return [axis for axis in axes if axis.size > 1]


def _copies(system: System) -> Iterator[_Copy]:
    """In the same order on all ranks of each axis."""
    for bucket in system.buckets.buckets:
        named = [(e.spec.name, slice(e.start, e.start + e.box.size)) for e in bucket.entries]
        for axis in _axes(system, bucket, data=True):
            yield from (_Copy(name, bucket.weights[run], axis) for name, run in named)
        if bucket.master.data_ptr() != bucket.weights[bucket.first :].data_ptr():
            for axis in _axes(system, bucket, data=not bucket.axes.divided):
                yield _Copy(f"masters of {named[0][0]} and what follows", bucket.master, axis)


def odd_ones(sums: Sequence[Sequence[int]]) -> list[int]:
    """Positions that differ from what most agree on; all where there is no majority."""
    counts = Counter(map(tuple, sums)).most_common(2)
    if len(counts) == 1:
        return []
    if counts[0][1] == counts[1][1]:
        return list(range(len(sums)))
    return [i for i, own in enumerate(sums) if tuple(own) != counts[0][0]]


def _differences(system: System) -> list[str]:
    """What differs along the axes of this rank."""
    by_axis: dict[Axis, list[_Copy]] = {}
    for copy in _copies(system):
        by_axis.setdefault(copy.axis, []).append(copy)
    told = []
    for axis, copies in by_axis.items():
        own = torch.stack([checksum(copy.tensor) for copy in copies])
        gathered = all_gather(own, axis)
        rows = host_read("checksums", gathered.view(axis.size, len(copies), 2))
        for i, copy in enumerate(copies):
            if odd := odd_ones([row[i] for row in rows]):
                ranks = ", ".join(str(axis.ranks[j]) for j in odd)
                told.append(f"{copy.name} of rank {ranks} (among ranks {list(axis.ranks)} of {axis.name})")
    return told


def refuse_differing_replicas(system: System, step: int) -> None:
    """PeerLostError on all ranks when any weight that several of them hold alike differs; those that see it name it."""
    system.buckets.await_weights(system.buckets.params)
    told = _differences(system)
    found = torch.tensor([len(told)], device=system.topology.device)
    if not host_read("differing", all_reduce_(found, system.topology.world))[0]:
        return
    shown = "; ".join(told[:3]) or "seen by others"
    raise PeerLostError(
        f"step {step}: weights that should be equal are not: {shown}. Memory or arithmetic of that rank failed. "
        "Start again without its machine: the run goes on from the newest checkpoint"
    )
