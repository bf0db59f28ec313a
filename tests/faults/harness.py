"""Forked ranks that train as processes of their own do: each has a log and an exit code, and faults are armed in it."""

import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from conftest import TORCHRUN_NAMES, die_with
from train.corpus import here, tiny_run

from megaswitch.checkpoint.choose import committed
from megaswitch.checkpoint.reader import Reader
from megaswitch.train.config import RunConfig
from megaswitch.train.guard_config import GuardConfig
from megaswitch.train.loop import train

Arm = Callable[[int], None]
"""Called in a child with its rank before it trains: what it patches or sets is that process's alone."""
SECONDS = 60.0


def nothing(rank: int) -> None:
    """No fault."""


@dataclass
class Rank:
    """A forked rank."""

    pid: int
    log: Path
    code: int | None = None

    @property
    def said(self) -> str:
        """What it wrote to standard output and error."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def poll(self) -> int | None:
        """Its exit code (negative: the signal that ended it), None while it lives."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def send(self, number: signal.Signals) -> None:
        """A signal."""
        os.kill(self.pid, number)


def _child(rank: int, n: int, meeting: Path, config: RunConfig, arm: Arm) -> int:
    for name in TORCHRUN_NAMES:
        os.environ.pop(name, None)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    try:
        if n > 1:
            timeout = timedelta(seconds=config.run.timeout)
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=n, timeout=timeout)
            dist.barrier()
        arm(rank)
        return train(config, here())
    except Exception as error:  # as the command does it
        if not hasattr(error, "exit_code"):
            traceback.print_exc()
            return 70
        sys.stderr.write(f"megaswitch: {error}\n")
        return int(error.exit_code)


def _fork(rank: int, n: int, meeting: Path, log: Path, config: RunConfig, arm: Arm) -> Rank:
    sys.stdout.flush()
    sys.stderr.flush()
    parent, pid = os.getpid(), os.fork()
    if pid:
        return Rank(pid, log)
    code = 1
    try:
        die_with(parent)
        os.setpgid(0, 0)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, closefd=False)  # type: ignore[misc]
        code = _child(rank, n, meeting, config, arm)
        sys.stderr.flush()
    finally:
        os._exit(code)


@contextlib.contextmanager
def ranks(n: int, config: RunConfig, arm: Arm = nothing) -> Iterator[list[Rank]]:
    """n processes that train; whatever is left of them at the end of the block is killed."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        found: list[Rank] = []
        try:
            for rank in range(n):
                found.append(_fork(rank, n, Path(folder) / "meeting", Path(folder) / f"log-{rank}", config, arm))
            yield found
        finally:
            for one in found:
                if one.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one.pid, signal.SIGKILL)
                    one.code = os.waitstatus_to_exitcode(os.waitpid(one.pid, 0)[1])


def wait(some: Sequence[Rank], seconds: float = SECONDS) -> list[int | None]:
    """Exit codes once all of these have ended; None for those that have not in time."""
    limit = time.monotonic() + seconds
    while any(one.poll() is None for one in some) and time.monotonic() < limit:
        time.sleep(0.02)
    return [one.poll() for one in some]


def until(condition: Callable[[], Any], what: Callable[[], str], seconds: float = SECONDS) -> None:
    """Waits for something."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, what()
        time.sleep(0.02)


def run(n: int, config: RunConfig, arm: Arm = nothing) -> tuple[list[int | None], str]:
    """Exit codes and everything said, of n processes that train until they end."""
    with ranks(n, config, arm) as found:
        codes = wait(found)
        return codes, "\n".join(one.said for one in found)


def small_run(folder: Path, corpus: Path, *, timeout: float = 30.0, every: int = 1, **layout: Any) -> RunConfig:
    """`tiny_run` with checkpoints."""
    config = tiny_run(folder, corpus, **layout)
    checkpoint = replace(config.checkpoint, every=every)
    return replace(config, checkpoint=checkpoint, run=replace(config.run, timeout=timeout))


def guarded(config: RunConfig, **guard: Any) -> RunConfig:
    """With other guards."""
    return replace(config, guard=replace(GuardConfig(), **guard))


def weights(config: RunConfig) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint, which must verify."""
    reader = Reader(committed(Path(config.run.dir) / "checkpoints")[0])
    return {"step": torch.tensor(reader.step)} | {name: reader.read_all(name) for name in reader.tensors}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal bit for bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def at_step(step: int, act: Callable[[], None], on: Sequence[int]) -> Arm:
    """Does something once on some ranks, in the middle of the step of that number (from 0): the gradients are there,
    nothing is updated."""
    from megaswitch.train import step as module

    def arm(rank: int) -> None:
        original = module.compute_gradients

        def compute(system: Any, sequences: Any, number: int, **more: Any) -> Any:
            record = original(system, sequences, number, **more)
            if number == step and rank in on:
                act()
            return record

        module.compute_gradients = compute

    return arm


def kill(number: signal.Signals) -> Callable[[], None]:
    """A signal to itself."""
    return lambda: os.kill(os.getpid(), number)
