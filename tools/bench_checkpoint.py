"""Measures checkpoints: bandwidth against the disk's own and torch's, and the pause of a save beside the training.

Every round writes and reads the same bytes with dd (fsync at the end; a cold read), with megaswitch and with
torch.distributed.checkpoint, in turns, for disks are moody; shown are the medians and the range of the rounds.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megaswitch.data.prep.command import Parser, positive, progress, run
from megaswitch.utils.errors import CannotWriteError, MissingInputError

if TYPE_CHECKING:  # help must not wait for torch
    from torch import Tensor

    from megaswitch.train.system import System

TENSOR_BYTES = 64 << 20
GIGABYTE = 10**9


@dataclass(frozen=True)
class Bench:
    """One thing to measure: its name, what is done, and the folder or file whose pages are forgotten before."""

    name: str
    work: Callable[[], object]
    cold: Path | None = None


def forget(path: Path) -> None:
    """Has the system drop a file, or all files of a folder, from its memory, so that it has to read the disk.

    Each is read once before: what lies below a virtual disk may have kept one file and not the other.
    """
    import os

    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        dd(f"if={file}", "of=/dev/null")
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def dd(*arguments: str) -> None:
    """The system's own copying."""
    command = [shutil.which("dd") or "dd", "bs=16M", *arguments]
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def source_file(size: int) -> Iterator[Path]:
    """Random bytes in memory (what is all zeros, some disks do not write)."""
    import numpy as np

    shared = Path("/dev/shm")  # noqa: S108 - a file with a random name in it
    with tempfile.NamedTemporaryFile(dir=shared if shared.is_dir() else None) as file:
        block = np.random.default_rng(0).bytes(TENSOR_BYTES)
        for _ in range(size // TENSOR_BYTES):
            file.write(block)
        file.flush()
        yield Path(file.name)


def bandwidth(folder: Path, size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round, by name."""
    import torch

    tensors = {f"t{i}": torch.randn(TENSOR_BYTES // 4) for i in range(size // TENSOR_BYTES)}
    found: dict[str, list[float]] = {}
    with source_file(size) as source, progress("rounds", rounds) as advance:
        for number in range(rounds):
            for bench in turned(writing(folder, source, tensors), number) + turned(reading(folder, tensors), number):
                if bench.cold:
                    forget(bench.cold)
                found.setdefault(bench.name, []).append(seconds(bench.work))
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            advance(1)
    return found


def turned(benches: list[Bench], by: int) -> list[Bench]:
    """Another one first in every round: none shall always come after the same."""
    by %= len(benches)
    return benches[by:] + benches[:by]


def writing(folder: Path, source: Path, tensors: "dict[str, Tensor]") -> list[Bench]:
    """A raw file and two checkpoints of the same size."""
    from torch.distributed import checkpoint as dcp

    from megaswitch.checkpoint.format import Piece
    from megaswitch.checkpoint.store import save
    from megaswitch.params.boxes import Box

    pieces = [Piece(n, tuple(x.shape), Box((0,), tuple(x.shape)), x) for n, x in tensors.items()]
    return [
        Bench("write dd", lambda: dd(f"if={source}", f"of={folder / 'raw'}", "conv=fsync")),
        Bench("write megaswitch", lambda: save(folder / "ours", 1, pieces, {}, None)),
        Bench("write torch", lambda: dcp.save(tensors, checkpoint_id=folder / "torch", no_dist=True)),
    ]


def reading(folder: Path, tensors: "dict[str, Tensor]") -> list[Bench]:
    """What `writing` wrote, into memory that is there."""
    from torch.distributed import checkpoint as dcp

    from megaswitch.checkpoint.reader import Reader

    ours = folder / "ours" / "step-00000001"

    def load(verify: bool) -> None:
        reader = Reader(ours, verify=verify)
        for name, tensor in tensors.items():
            reader.read_into(name, _whole(tensor), tensor)

    return [
        Bench("read dd", lambda: dd(f"if={folder / 'raw'}", "of=/dev/null"), folder / "raw"),
        Bench("read megaswitch, hashes compared before", lambda: load(True), ours),
        Bench("read megaswitch, hashes not compared", lambda: load(False), ours),
        Bench("read torch", lambda: dcp.load(tensors, checkpoint_id=folder / "torch", no_dist=True), folder / "torch"),
    ]


def _whole(tensor: "Tensor"):  # type: ignore[no-untyped-def]
    from megaswitch.params.boxes import Box

    return Box((0,), tuple(tensor.shape))


@dataclass(frozen=True)
class Pauses:
    """Seconds: a step alone, a step while a checkpoint is written, the pause of each asynchronous save, and the
    whole of a synchronous one; and the bytes of the state."""

    step: float
    busy: float
    pauses: list[float]
    synchronous: float
    size: int


def training(folder: Path, preset: str, sequences: int, saves: int) -> Pauses:
    """Trains a preset with AdamW on random ids and saves meanwhile."""
    import torch

    from megaswitch.checkpoint.config import CheckpointConfig
    from megaswitch.checkpoint.saver import Saver
    from megaswitch.checkpoint.training import training_pieces
    from megaswitch.train.step import train_step

    system = _system(preset, sequences)
    rows, steps = _rows(system), iter(range(1 << 30))

    def step() -> float:
        return seconds(lambda: train_step(system, rows, next(steps)))

    pieces = training_pieces(system.buckets, system.optimizer)
    saver = Saver(folder / "pauses", CheckpointConfig(keep=0), None)
    step()
    alone, busy, pauses = [step() for _ in range(5)], [], []
    with progress("saves", saves) as advance:
        for number in range(1, saves + 1):
            pauses.append(seconds(lambda n=number: saver.save(n, pieces, {})))  # type: ignore[misc]
            while saver.busy:
                busy.append(step())
            saver.settle()
            alone.append(step())
            advance(1)
    last = seconds(lambda: saver.save_last(saves + 1, pieces, {}))
    size = sum(p.tensor.numel() * p.tensor.element_size() for p in pieces)
    assert torch.isfinite(pieces[0].tensor).all()
    return Pauses(statistics.median(alone), statistics.median(busy or alone), pauses, last, size)


def _system(preset: str, sequences: int) -> "System":
    from megaswitch.config.load import load
    from megaswitch.model.presets import presets
    from megaswitch.topology.start import find_place
    from megaswitch.train.config import RunConfig
    from megaswitch.train.system import build

    keys = [f"--model.preset={preset}", f"--train.global_batch={sequences}", f"--train.micro_batch={sequences}"]
    return build(load(RunConfig, presets(), [*keys, "--optim.name=adamw"], "bench", ""), find_place())


def _rows(system: "System") -> "Sequence[Sequences]":  # type: ignore[name-defined]  # noqa: F821
    """A step's micro-batches of random ids."""
    import numpy as np

    from megaswitch.data.batch import Batch

    model, rng = system.config.model, np.random.default_rng(0)
    count = system.config.train.micro_batch
    ids = rng.integers(3, model.vocab_size - 100, (count, model.encoder_length))
    targets = rng.integers(3, model.vocab_size - 100, (count, model.decoder_length))
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    return [Batch(ids, shifted, targets, np.arange(count))] * system.num_microbatches


def report_bandwidth(found: dict[str, list[float]], size: int) -> None:
    """A line for each thing measured, with its share of dd's."""
    print(f"{size / GIGABYTE:.2f} GB, {len(next(iter(found.values())))} rounds: GB/s, median (range); share of dd's")
    for name, times in found.items():
        rates = sorted(size / t / GIGABYTE for t in times)
        disk = found[f"{name.partition(' ')[0]} dd"]
        share = statistics.median(d / t for d, t in zip(disk, times, strict=True))
        print(f"{name:42}{statistics.median(rates):6.2f} ({rates[0]:.2f} - {rates[-1]:.2f}){100 * share:7.0f}%")


def report_pauses(p: Pauses, preset: str) -> None:
    """The pause as a share of a step."""
    pause = statistics.median(p.pauses)
    print(f"{preset}, state of {p.size / GIGABYTE:.2f} GB: a step takes {p.step:.3f} s, {p.busy:.3f} s while saving")
    print(f"an asynchronous save pauses training for {pause:.4f} s (the first for {p.pauses[0]:.4f} s):", end=" ")
    print(f"{100 * pause / p.step:.1f}% of a step; a synchronous one for {p.synchronous:.2f} s")


def main() -> int:
    """The command; returns the exit code."""
    parser = Parser(__doc__ or "", "python tools/bench_checkpoint.py --folder /data --gigabytes 4 --rounds 5")
    parser.add_argument("--folder", type=Path, default=Path("."), help="where to write, on the disk to be measured")
    parser.add_argument("--gigabytes", type=positive, default=2, metavar="N", help="of each write (default: 2)")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="(default: 3)")
    parser.add_argument("--preset", default="switch_tiny", help="model that trains meanwhile (default: switch_tiny)")
    parser.add_argument("--sequences", type=positive, default=64, metavar="N", help="of a step (default: 64)")
    parser.add_argument("--saves", type=positive, default=5, metavar="N", help="while it trains (default: 5)")
    args = parser.parse_args()
    return run(lambda: bench(args))


def bench(args: argparse.Namespace) -> None:
    """Everything, in a folder that is gone afterwards."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    size = args.gigabytes * GIGABYTE // TENSOR_BYTES * TENSOR_BYTES
    if not args.folder.is_dir():
        raise MissingInputError(f"{args.folder} is no folder; give one on the disk to be measured")
    if shutil.disk_usage(args.folder).free < 4 * size:
        raise CannotWriteError(f"{4 * size / GIGABYTE:.0f} GB are needed at {args.folder}; give fewer --gigabytes")
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-", dir=args.folder) as folder:
        report_bandwidth(bandwidth(Path(folder), size, args.rounds), size)
        report_pauses(training(Path(folder), args.preset, args.sequences, args.saves), args.preset)


if __name__ == "__main__":
    sys.exit(main())
