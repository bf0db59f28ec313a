"""The soak of tests/soak.sh: a run with a fault every so often, held to one that nothing happened to."""

import argparse
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from faults.torchrun import Job, arguments, job, newest, weights
from train.corpus import write_corpus

from megaswitch.checkpoint.choose import committed

_HANG = "--guard.hang=5"
_MIB = 1 << 20


@dataclass
class Watch:
    """What is measured: of workers that have trained a while, by the time since the soak began."""

    resident: list[tuple[float, float]] = field(default_factory=list)
    files: list[tuple[float, int]] = field(default_factory=list)
    folder: list[tuple[float, float]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def look(self, run: Job, folder: Path) -> None:
        """Once a second or so."""
        now = time.monotonic() - self.began
        with suppress(psutil.Error):
            for worker in run.workers():
                if time.time() - worker.create_time() > 12:  # past its start
                    self.resident.append((now, worker.memory_info().rss / _MIB))
                    self.files.append((now, worker.num_fds()))
        with suppress(OSError):
            checkpoints = sum(p.stat().st_size for p in (folder / "checkpoints").rglob("*") if p.is_file())
            self.folder.append((now, checkpoints / _MIB))


def halves(values: list[tuple[float, float]]) -> tuple[float, float]:
    """The most of the first and of the second half of the time."""
    if not values:
        return 0.0, 0.0
    middle = (values[0][0] + values[-1][0]) / 2
    first = [v for t, v in values if t <= middle]
    return max(first), max([v for t, v in values if t > middle] or first)


class Soak:
    """Faults that happen to one run."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.happened = folder, random.Random(seed), Counter[str]()
        self.faults: list[Callable[[Job], None]] = [
            self.kill_a_worker,
            self.kill_both_workers,
            self.stop_a_worker,
            self.raise_a_signal,
            self.fill_the_disk,
            self.flip_a_bit,
            self.cut_a_shard,
            self.remove_a_shard,
            self.leave_things_behind,
        ]

    def strike(self, run: Job) -> None:
        """One fault."""
        fault = self.rng.choice(self.faults)
        with suppress(psutil.Error, OSError):
            fault(run)
            self.happened[fault.__name__] += 1

    def _victim(self, run: Job) -> psutil.Process:
        workers = run.workers()
        if not workers:
            raise psutil.NoSuchProcess(0)
        return self.rng.choice(workers)

    def kill_a_worker(self, run: Job) -> None:
        self._victim(run).send_signal(signal.SIGKILL)

    def kill_both_workers(self, run: Job) -> None:
        self._victim(run)
        for worker in run.workers():
            worker.send_signal(signal.SIGKILL)

    def stop_a_worker(self, run: Job) -> None:
        self._victim(run).send_signal(signal.SIGSTOP)

    def raise_a_signal(self, run: Job) -> None:
        run.process.send_signal(self.rng.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]))

    def fill_the_disk(self, run: Job) -> None:
        """For three seconds no worker may write a file of more than 8 kB."""
        workers = run.workers()
        for limit in (8192, resource.RLIM_INFINITY):
            for worker in workers:
                with suppress(psutil.Error, OSError):
                    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            if limit != resource.RLIM_INFINITY:
                time.sleep(3)

    def _shard(self) -> Path:
        """A shard of the newest checkpoint, of which there are two: the one before must serve."""
        found = committed(self.folder / "checkpoints")
        if len(found) < 2:
            raise OSError("too few")
        return self.rng.choice(sorted(found[0].glob("*.safetensors")))

    def _then_kill(self, run: Job) -> None:
        """So that somebody reads it."""
        self.kill_a_worker(run)

    def flip_a_bit(self, run: Job) -> None:
        shard = self._shard()
        data = bytearray(shard.read_bytes())
        data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        shard.write_bytes(data)
        self._then_kill(run)

    def cut_a_shard(self, run: Job) -> None:
        shard = self._shard()
        with open(shard, "r+b") as file:
            file.truncate(shard.stat().st_size // 2)
        self._then_kill(run)

    def remove_a_shard(self, run: Job) -> None:
        self._shard().unlink()
        self._then_kill(run)

    def leave_things_behind(self, run: Job) -> None:
        root = self.folder / "checkpoints"
        (root / ("step-00000001.tmp-" + "0" * 32)).mkdir(exist_ok=True)
        (root / "latest").write_text("step-99999999")
        self._then_kill(run)


def begin(folder: Path, corpus: Path, log: Path, stop_after: int = 0) -> AbstractContextManager[Job]:
    """Starts the job, which has no end of its own unless one is given."""
    more = [f"--train.steps={10**7}", f"--train.stop_after={stop_after}", _HANG]
    more += ["--checkpoint.every=10", "--checkpoint.keep=3", "--log.every=50"]
    return job(arguments(folder, corpus, *more), log, MAX_RESTARTS="100", STOP_SECONDS="5")


def disturbed(soak: Soak, corpus: Path, minutes: float, every: float, watch: Watch) -> int:
    """Trains through faults for so many minutes, and a little further without; returns how often the command was
    started."""
    starts, next_fault = 0, time.monotonic() + every
    until, enough = time.monotonic() + 60 * minutes, 0
    while not enough or newest(soak.folder) < enough:
        starts += 1
        with begin(soak.folder, corpus, soak.folder.parent / "disturbed.log") as run:
            while run.process.poll() is None:
                time.sleep(1)
                watch.look(run, soak.folder)
                if time.monotonic() > until:
                    enough = enough or newest(soak.folder) + 30  # written after the last fault
                elif time.monotonic() > next_fault:
                    soak.strike(run)
                    next_fault = time.monotonic() + every
                if enough and newest(soak.folder) >= enough:
                    run.process.send_signal(signal.SIGTERM)
                    run.process.wait()
    return starts


def undisturbed(folder: Path, corpus: Path, steps: int) -> dict[str, torch.Tensor]:
    """The weights of a run to the same step that nothing happens to."""
    with begin(folder / "undisturbed", corpus, folder / "undisturbed.log", stop_after=steps) as run:
        if run.process.wait() != 0:
            raise SystemExit(f"the undisturbed run failed:\n{run.said[-3000:]}")
    return weights(folder / "undisturbed")


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Tensors that are not equal bit for bit."""
    return [name for name in one.keys() | other.keys() if not torch.equal(one[name], other[name])]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    corpus = write_corpus(folder / "corpus")
    try:
        soak, watch = Soak(folder / "disturbed", args.seed), Watch()
        starts = disturbed(soak, corpus, args.minutes, args.every, watch)
        minutes, steps = (time.monotonic() - watch.began) / 60, newest(soak.folder)
        told = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(soak.happened.items()))
        print(f"{steps} steps in {minutes:.1f} minutes, {starts} starts of the command", flush=True)
        print(f"{sum(soak.happened.values())} faults: {told}", flush=True)
        print("now the same steps without faults", flush=True)
        return verdict(soak, watch, differing(undisturbed(folder, corpus, steps), weights(soak.folder)))
    finally:
        if args.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def verdict(soak: Soak, watch: Watch, different: list[str]) -> int:
    """Prints what came of it; the exit code."""
    wrong = [f"{len(different)} tensors differ, such as {different[0]}"] if different else []
    # half a minute more or less of a worker's age, and a checkpoint more or less, are no growth
    for what, values, allowed in (
        ("MiB resident", watch.resident, 1.10),
        ("open files", watch.files, 1.10),
        ("MiB of checkpoints", watch.folder, 1.5),
    ):
        first, second = halves(values)  # type: ignore[arg-type]
        print(f"most {what}: {first:.1f} in the first half, {second:.1f} in the second")
        if second > allowed * first:
            wrong.append(f"{what} grew from {first:.1f} to {second:.1f}")
    left = [p.name for p in (soak.folder / "checkpoints").iterdir() if ".tmp-" in p.name or ".bad-" in p.name]
    print(f"left aside: {len(left)} folders")
    good = "passed: the weights are those of the undisturbed run, bit for bit"
    print("FAILED: " + "; ".join(wrong) if wrong else good)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
