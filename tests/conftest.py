"""Fixtures for every test: `world` (forked ranks), `golden` (published vectors) and the option `--long`.

The parent stays at one torch thread: a child forked from a process that has used two of them hangs.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import hypothesis
import numpy as np
import pytest
import torch
import torch.distributed as dist

torch.set_num_threads(1)
with contextlib.suppress(RuntimeError):  # refused once parallel work has begun; one is then already set
    torch.set_num_interop_threads(1)

# Example times say more about the machine's load than about the code. The default run draws the same examples
# every time, so that a change is judged by what it changed; the long one looks for new ones.
hypothesis.settings.register_profile("default", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=50)
hypothesis.settings.load_profile("default")

World = Callable[..., list[Any]]
COLLECTIVE_SECONDS = 60.0
GRACE_SECONDS = 1.0
"""How long the other ranks may still tell what they saw after the first one failed."""
TORCHRUN_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RankFailed(RuntimeError):
    """A rank of a forked world raised, died or ran past the time limit; the message holds its traceback."""


@dataclass(frozen=True)
class Child:
    """One forked rank and the reading end of the pipe on which it reports."""

    rank: int
    pid: int
    pipe: Connection


@dataclass(frozen=True)
class Report:
    """What came of a rank: its pickled result, or why there is none."""

    rank: int
    result: bytes | None
    trouble: str = ""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked long")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--long"):
        hypothesis.settings.load_profile("long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="long: runs with --long"))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """`golden("router_top2")` is a dictionary of that vector file's arrays; a name with suffix .json is parsed."""
    root = Path(os.environ.get("MEGASWITCH_GOLDEN") or Path(__file__).parent / "golden" / "vectors")

    def load(name: str) -> Any:
        if name.endswith(".json"):
            return json.loads((root / name).read_text())
        with np.load(root / f"{name}.npz", allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    return load


@pytest.fixture(scope="session")
def world() -> World:
    """`results = world(n, fn, *args)`: `fn(*args)` on n forked gloo ranks, results in the order of the ranks.

    `limit=` (seconds, 60 by default) bounds the whole call. A rank that raises, dies or hangs ends all of
    them and raises `RankFailed` with its traceback.
    """
    return run_world


def run_world(n: int, fn: Callable[..., Any], *args: Any, limit: float = 60.0) -> list[Any]:
    """See `world`."""
    with tempfile.TemporaryDirectory(prefix="world-") as folder:
        children: list[Child] = []
        try:
            for rank in range(n):
                children.append(fork(rank, n, Path(folder), fn, args, limit))
            reports = collect(children, Path(folder), time.monotonic() + limit)
            if all(report.result is not None for report in reports):  # else they only waited for the first
                reports += [hung(child, Path(folder), limit) for child in silent(children, reports)]
        finally:
            end(children)
    if bad := [report for report in reports if report.result is None]:
        raise RankFailed(describe(bad))
    return [pickle.loads(report.result) for report in sorted(reports, key=lambda r: r.rank)]  # type: ignore[arg-type]


def fork(rank: int, n: int, folder: Path, fn: Callable[..., Any], args: tuple[Any, ...], limit: float) -> Child:
    reader, writer = Pipe(duplex=False)
    sys.stdout.flush()
    sys.stderr.flush()  # what is still buffered would be written by both
    parent = os.getpid()
    pid = os.fork()
    if pid:
        writer.close()
        return Child(rank, pid, reader)
    try:
        die_with(parent)
        writer.send_bytes(answer(rank, n, folder, fn, args, limit))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)  # nothing of pytest may run twice, however the child ended


def die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent ends in whatever way (Linux only)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle: it ends us
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def answer(rank: int, n: int, folder: Path, fn: Callable[..., Any], args: tuple[Any, ...], limit: float) -> bytes:
    """The child's whole life: b"+" and the pickled result, or b"-" and the traceback."""
    with open(folder / f"stack-{rank}", "w") as stack:
        faulthandler.enable(file=stack)
        faulthandler.dump_traceback_later(max(limit - 0.5, 0.1), file=stack)
        try:
            for name in TORCHRUN_NAMES:
                os.environ.pop(name, None)
            # The address that the host's name resolves to may not be reachable; loopback is.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
            timeout = timedelta(seconds=min(limit, COLLECTIVE_SECONDS))
            dist.init_process_group(
                "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=n, timeout=timeout
            )
            dist.barrier()  # a rank that ended while another still connects to it would fail that one
            return b"+" + pickle.dumps(fn(*args))
        except BaseException:  # SystemExit and pytest's own failures too: the parent raises for them
            return b"-" + traceback.format_exc().encode(errors="replace")
        finally:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.disable()


def collect(children: list[Child], folder: Path, deadline: float) -> list[Report]:
    """Reports in order of arrival until all are in, time is up, or the grace after a failure has passed."""
    open_pipes: dict[Any, Child] = {child.pipe: child for child in children}
    reports: list[Report] = []
    while open_pipes:
        ready = wait(list(open_pipes), timeout=max(deadline - time.monotonic(), 0))
        if not ready:
            break
        for pipe in ready:
            reports.append(receive(open_pipes.pop(pipe), folder))
            if reports[-1].result is None:
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    return reports


def receive(child: Child, folder: Path) -> Report:
    try:
        message = child.pipe.recv_bytes()
    except EOFError:
        stood = where_it_stood(child, folder) or "killed, it seems"
        return Report(child.rank, None, f"died without a word: {stood}")
    if message[:1] == b"+":
        return Report(child.rank, message[1:])
    return Report(child.rank, None, message[1:].decode())


def silent(children: list[Child], reports: list[Report]) -> Iterator[Child]:
    heard = {report.rank for report in reports}
    return (child for child in children if child.rank not in heard)


def hung(child: Child, folder: Path, limit: float) -> Report:
    return Report(child.rank, None, f"gave no answer (time limit {limit:g} s)\n{where_it_stood(child, folder)}")


def where_it_stood(child: Child, folder: Path) -> str:
    """What the child's fault handler wrote: its stack at a crash or at the end of its time."""
    stack = folder / f"stack-{child.rank}"
    return stack.read_text() if stack.exists() else ""


def end(children: list[Child]) -> None:
    """Kills and reaps every child; one that has ended is a zombie until here, so no pid is another's."""
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
    for child in children:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child.pid, 0)
        child.pipe.close()


def describe(bad: list[Report]) -> str:
    first, *others = bad
    lines = [f"rank {first.rank}: {first.trouble.strip()}"]
    lines += [f"then rank {report.rank}: {report.trouble.strip().splitlines()[-1]}" for report in others]
    return "\n".join(lines)
