"""What is looked at before a run begins: collectives, clocks, room for checkpoints, memory, a batch."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

import orjson
import torch
import torch.distributed as dist

from megaswitch.checkpoint.folders import folder_at
from megaswitch.checkpoint.places import Place
from megaswitch.checkpoint.staging import spare_memory
from megaswitch.checkpoint.training import Progress, training_pieces, training_tensors
from megaswitch.comm.collectives import all_reduce_, barrier
from megaswitch.comm.messages import gather_bytes
from megaswitch.topology.grid import AXIS_NAMES
from megaswitch.topology.topology import Axis
from megaswitch.train.alike import on_first
from megaswitch.train.batches import Source, read
from megaswitch.train.step import compute_gradients, total_loss
from megaswitch.train.system import System
from megaswitch.utils.errors import CannotWriteError
from megaswitch.utils.host import host_read

log = logging.getLogger(__name__)

_MANIFEST_BYTES = 1 << 20
_QUICK = 1 << 16


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what was found."""

    what: str
    found: str


def size_text(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def clocks(group: "dist.ProcessGroup | None") -> Finding:
    """How far apart the hosts' clocks are, to some milliseconds; nothing depends on it but what logs say."""
    gather_bytes(b"", group)  # all begin at about the same time
    times = [orjson.loads(told) for told in gather_bytes(orjson.dumps(time.time()), group)]
    return Finding("clocks", f"within {1000 * (max(times) - min(times)):.1f} ms of each other")


def _axes(system: System) -> Iterator[Axis]:
    """Each line of ranks once, whatever it is called."""
    topology = system.topology
    seen: set[tuple[int, ...]] = set()
    for axis in (topology.world, *(topology.axis(name) for name in AXIS_NAMES)):
        if axis.size > 1 and axis.ranks not in seen:
            seen.add(axis.ranks)
            yield axis


def collectives(system: System, elements: int, repeats: int = 3) -> Iterator[Finding]:
    """An all-reduce of so many float32 numbers on each axis, all lines of it at once; the slowest line counts."""
    device, world = system.topology.device, system.topology.world
    for axis in _axes(system):
        x = torch.ones(elements, device=device)
        host_read("preflight", all_reduce_(x, axis)[:1])  # makes what is made at the first use
        barrier(world)
        began = time.perf_counter()
        for _ in range(repeats):
            all_reduce_(x, axis)
        host_read("preflight", x[:1])
        own = torch.tensor([(time.perf_counter() - began) / repeats], device=device, dtype=torch.float64)
        seconds = float(host_read("preflight", all_reduce_(own, world, "max"))[0])
        rate = size_text(4 * elements / seconds)
        yield Finding(
            f"axis {axis.name} of {axis.size}", f"{rate}/s in an all-reduce of {size_text(4 * elements)}"
        )


def room_for_checkpoints(system: System, root: Place, group: "dist.ProcessGroup | None") -> Finding:
    """CannotWriteError on every rank when not even one checkpoint has room below `root`, which must exist."""
    pieces = training_pieces(system.buckets, system.optimizer)
    mine = sum(piece.tensor.numel() * piece.tensor.element_size() for piece in pieces)
    needed = sum(orjson.loads(told) for told in gather_bytes(orjson.dumps(mine), group))

    def look() -> str:
        free = folder_at(root).free()
        if free is None:
            return f"one is {size_text(needed)}; what {root} still takes is not known"
        if free < needed + _MANIFEST_BYTES:
            raise CannotWriteError(
                f"one checkpoint needs {size_text(needed)}, {size_text(free)} are free at {root}; free some space or "
                "choose another checkpoint.dir"
            )
        return f"one is {size_text(needed)}, {size_text(free)} are free: room for {free // max(needed, 1)} of them"

    return Finding("checkpoints", on_first(system.topology.rank, group, look) or "")


def memory(system: System) -> Finding:
    """What the state of this rank takes, the copy for saving it, and what the machine can still give."""
    tensors = training_tensors(system.buckets, system.optimizer)
    state = {t.view.untyped_storage().data_ptr(): t.view.untyped_storage().nbytes() for t in tensors}
    for bucket in system.buckets.buckets:
        for flat in (bucket.weights, bucket.grads):
            state[flat.untyped_storage().data_ptr()] = flat.untyped_storage().nbytes()
    copy = sum(p.tensor.numel() * p.tensor.element_size() for p in training_pieces(system.buckets, system.optimizer))
    there = f"{size_text(spare_memory())} of the host's are free"
    if system.topology.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(system.topology.device)
        there += f", and {size_text(free)} of the device's {size_text(total)}"
    held = f"rank 0 holds a state of {size_text(sum(state.values()))}, saves a copy of {size_text(copy)}"
    return Finding("memory", f"{held}; {there}")


def mock_batch(system: System, source: Source, step: int, sample: int, microbatches: int | None = 1) -> Finding:
    """Some micro-batches (None: all of a step) forward and backward, up to the norm. Only gradients are touched, which
    every step begins by forgetting: what follows is what it would have been."""
    began = time.perf_counter()
    record = compute_gradients(system, read(system, source, sample)[:microbatches], step)
    loss, norm = total_loss(system, record), record.grad_norm
    note = "" if isfinite(loss) and isfinite(norm) else ": NOT FINITE"
    seconds = time.perf_counter() - began
    return Finding("mock batch", f"loss {loss:.4g}, gradient norm {norm:.4g} after {seconds:.2f} s{note}")


def look(
    system: System, source: Source, root: Place, group: "dist.ProcessGroup | None", progress: Progress
) -> None:
    """What a run looks at first, in a second or two; the first rank tells what was found."""
    found = [
        clocks(group),
        *collectives(system, _QUICK),
        room_for_checkpoints(system, root, group),
        memory(system),
        mock_batch(system, source, progress.step, progress.samples),
    ]
    for finding in found if system.topology.rank == 0 else ():
        log.info("%s: %s", finding.what, finding.found)
