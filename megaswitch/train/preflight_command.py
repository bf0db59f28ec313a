"""`megaswitch preflight`: everything that a run needs is looked at, and nothing is kept."""

import sys
from collections.abc import Iterator, Sequence

import torch.distributed as dist

from megaswitch.checkpoint.store import refuse_unwritable
from megaswitch.data.dataset import Dataset
from megaswitch.topology.start import Place, cpu_group, find_place, process_group
from megaswitch.train.alike import facts, on_first, refuse_unlike
from megaswitch.train.batches import read
from megaswitch.train.check import check
from megaswitch.train.config import RunConfig
from megaswitch.train.corpora import lowest_sentinel, open_training
from megaswitch.train.determinism import deterministic
from megaswitch.train.memory import Memory
from megaswitch.train.preflight import Finding, clocks, collectives, memory, mock_batch, room_for_checkpoints
from megaswitch.train.resume import checkpoint_root
from megaswitch.train.speed import measured_peak
from megaswitch.train.step import train_step
from megaswitch.train.system import System, build, compute_dtype
from megaswitch.utils.errors import DivergedError
from megaswitch.utils.logging import setup
from megaswitch.utils.problem import refuse

_ELEMENTS = 1 << 22


def preflight(config: RunConfig, place: Place | None = None) -> int:
    """Look at everything and print what was found as a table; returns the process's exit code.

    Raises what a run would: UserError for a configuration, data or processes that do not fit, CannotWriteError where a
    checkpoint has no room, PeerLostError when the others cannot be met, DivergedError when the mock step is not finite.
    """
    place = place or find_place(config.run.device)
    setup(place.rank, place.world)
    refuse(check(config, place.world))
    source = open_training(config)
    with process_group(place, config.run.timeout), deterministic(config.train.deterministic):
        group = cpu_group(place, config.run.timeout)
        mine = facts(config, source.fingerprint)
        refuse_unlike(mine, group)
        found = [Finding(name, f"{value} on all {place.world} ranks") for name, value in mine.items()]
        system = build(config, place, first_sentinel=lowest_sentinel(source))
        found += _of_system(config, system, source, group)
        if place.rank == 0:
            sys.stdout.write(table(found))
    return 0


def _of_system(
    config: RunConfig, system: System, source: Dataset, group: "dist.ProcessGroup | None"
) -> Iterator[Finding]:
    rank, root = system.topology.rank, checkpoint_root(config)
    yield clocks(group)
    yield from collectives(system, _ELEMENTS)
    on_first(rank, group, lambda: refuse_unwritable(root))
    yield room_for_checkpoints(system, root, group)
    yield memory(system)
    peak = measured_peak(system.topology, compute_dtype(config, system.topology.device))
    yield Finding("products", f"{peak / 1e9:.0f} GFLOP/s on all ranks together")
    yield mock_batch(system, source, 0, 0, microbatches=None)
    yield _whole_step(system, source)


def _whole_step(system: System, source: Dataset) -> Finding:
    """A step with its update: the state is thrown away with the process."""
    result = train_step(system, read(system, source, 0), 0)
    after = train_step(system, read(system, source, 0), 1)
    if result.skipped or after.skipped:
        raise DivergedError(
            f"the mock step has loss {result.loss} and gradient norm {result.grad_norm}, then {after.loss} and "
            f"{after.grad_norm}: lower optim.lr, set optim.clip or train.dtype=float32"
        )
    used = Memory(system.topology.device, 1.0).used_gb()
    text = f"loss {result.loss:.4g}, after an update {after.loss:.4g}; rank 0 used {used:.2f} GB at most"
    return Finding("two mock steps", text)


def table(found: Sequence[Finding]) -> str:
    """A line each."""
    width = max(len(finding.what) for finding in found)
    return "".join(f"{finding.what:<{width}}  {finding.found}\n" for finding in found)
