"""From global sample numbers to this rank's micro-batches and their contexts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from megaswitch.comm.collectives import all_reduce_
from megaswitch.layers.context import Context
from megaswitch.model.config import STACKS
from megaswitch.model.micro_batch import MicroBatch, Sequences, make_micro_batch
from megaswitch.train.system import System
from megaswitch.utils.host import host_read


class Source(Protocol):
    """Where samples come from: a function of their global numbers alone."""

    def batch(self, first: int, count: int) -> Sequences:
        """Samples first .. first + count - 1."""
        ...


@dataclass(frozen=True)
class Work:
    """One step's micro-batches on this rank, each with its context."""

    batches: Sequence[MicroBatch]
    contexts: Sequence[Context]


def own_range(system: System, first: int) -> tuple[int, int]:
    """First sample and count of this rank's part of the global batch that begins at sample `first`."""
    return first + system.topology.dp.rank * system.sequences, system.sequences


def micro_ranges(system: System, first: int) -> list[tuple[int, int]]:
    """First sample and count of each of this rank's micro-batches of that global batch."""
    start, count = own_range(system, first)
    size = system.config.train.micro_batch
    return [(at, size) for at in range(start, start + count, size)]


def read(system: System, source: Source, first: int) -> list[Sequences]:
    """This rank's micro-batches of the global batch that begins at sample `first`."""
    return [source.batch(at, size) for at, size in micro_ranges(system, first)]


def make_work(system: System, sequences: Sequence[Sequences], step: int, *, training: bool) -> Work:
    """One step's work from this rank's micro-batches."""
    config, topology = system.config, system.topology
    batches = [
        make_micro_batch(rows, topology.tp.size, topology.device, route_padding=config.model.route_padding)
        for rows in sequences
    ]
    targets = _count_targets(system, batches)
    groups = {stack: config.train.global_batch / config.model.group_size(stack) for stack in STACKS}
    contexts = [
        Context(
            topology=topology,
            training=training,
            seed=config.train.seed,
            step=step,
            samples_B=batch.samples_B,
            num_targets=targets,
            num_groups=groups,
            recompute=config.train.recompute,
            recompute_decoder=config.train.recompute_of("decoder"),
            work=system.executor.work,
            ops=system.ops,
            padded=config.layout.dispatch == "padded",
        )
        for batch in batches
    ]
    return Work(batches, contexts)


def _count_targets(system: System, batches: Sequence[MicroBatch]) -> float:
    """Real targets of the whole global batch (one all-reduce over dp), at least 1."""
    counts = [batch.decoder_real_BT.sum() for batch in batches]
    total = all_reduce_(torch.stack(counts).sum().to(torch.float64), system.topology.dp)
    return max(1.0, float(host_read("num_targets", total.unsqueeze(0))[0]))
