"""Runs under torchrun, as launch/train.sh starts them: to be killed, stopped and started again."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch
from train.corpus import MODEL_ARGUMENTS

from megaswitch.checkpoint.choose import committed
from megaswitch.checkpoint.reader import Reader

ROOT = Path(__file__).parents[2]


def arguments(folder: Path, corpus: Path, *more: str) -> list[str]:
    """Of a small run with a checkpoint every other step."""
    return [
        *MODEL_ARGUMENTS,
        "--layout.ep=2",
        "--model.dropout=0.1",
        "--train.global_batch=4",
        "--train.dtype=float32",
        "--checkpoint.every=2",
        "--checkpoint.keep=2",
        "--eval.every=0",
        "--run.threads=1",
        "--run.device=cpu",
        "--run.timeout=60",
        "--log.tensorboard=false",
        f"--run.dir={folder}",
        f"--data.train={corpus}",
        *more,
    ]


class Job:
    """A torchrun with its workers."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment}
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                ["bash", str(ROOT / "launch" / "train.sh"), *command], env=env, stdout=out, stderr=out
            )

    @property
    def said(self) -> str:
        """Everything so far."""
        return self.log.read_text(errors="replace")

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        with suppress(psutil.Error):
            return sorted(psutil.Process(self.process.pid).children(), key=lambda p: p.pid)
        return []

    def until(self, condition: Callable[[], object], seconds: float = 100.0) -> None:
        """Waits for something while the job lives."""
        limit = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < limit and self.process.poll() is None, self.said
            time.sleep(0.05)


@contextmanager
def job(command: Sequence[str], log: Path, nproc: int = 2, **environment: str) -> Iterator[Job]:
    """A job; at the end of the block nothing is left of it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    found = Job(command, log, {"NPROC": str(nproc), "PYTHONUNBUFFERED": "1", **environment})
    try:
        yield found
    finally:
        workers = found.workers()
        found.process.kill()
        found.process.wait()
        for worker in workers:
            with suppress(psutil.Error):
                worker.kill()


def newest(folder: Path) -> int:
    """The step of the newest checkpoint; 0 without any."""
    found = committed(folder / "checkpoints")
    return int(found[0].name.removeprefix("step-")) if found else 0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint, which must verify."""
    reader = Reader(committed(folder / "checkpoints")[0])
    return {"step": torch.tensor(reader.step)} | {name: reader.read_all(name) for name in reader.tensors}


def kill_now_and_then(run: Job, times: int, seed: int, most: float) -> int:
    """Kills a random worker at random moments of its life, so many times; returns how often it did."""
    rng, killed = random.Random(seed), 0
    for _ in range(times):
        run.until(lambda: run.process.poll() is not None or len(run.workers()) == 2)
        time.sleep(rng.uniform(0.0, most))
        if run.process.poll() is not None:
            break
        workers = run.workers()
        if workers:
            with suppress(psutil.Error):
                victim = rng.choice(workers)
                victim.send_signal(signal.SIGKILL)
                killed += 1
        time.sleep(0.5)  # torchrun notices
    return killed

