"""Several processes of ours on this machine that work together, a round at a time."""

import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benches.timing import Taken
from megaswitch.topology.start import Place
from megaswitch.utils.errors import UserError

Round = Callable[[], Any]
Make = Callable[[Place], Round]


class Crew:
    """Processes that are told to do a round and answer what came of it."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes
        self.results: list[Any] = []
        """What the last round gave, by rank."""

    def once(self) -> Taken:
        """A round: the longest any of them took, and the processors' time of all."""
        for pipe in self._pipes:
            with suppress(BrokenPipeError):  # what it said before it ended is there to be read
                pipe.send("go")
        try:
            answers = [pipe.recv() for pipe in self._pipes]
        except (EOFError, ConnectionResetError):
            raise UserError("a process of the benchmark was ended from outside; was there memory enough?") from None
        troubles = [answer for answer in answers if isinstance(answer, str)]
        if troubles:
            raise RuntimeError(f"a process of the benchmark failed:\n{troubles[0]}")
        self.results = [result for _, _, result in answers]
        return Taken(max(wall for wall, _, _ in answers), sum(cpu for _, cpu, _ in answers))


@contextmanager
def crew(processes: int, make: Make, threads: int = 1, *, fork: bool = True) -> Iterator[Crew]:
    """Starts processes with `threads` threads each, which meet over gloo; `make` builds what a round does.

    This process must not have used several threads before: a child forked from it would hang. Without `fork` they begin
    anew and have nothing of this process, such as its settings of malloc; `make` is then a module's function, or a
    partial of one.
    """
    context: Any = get_context("fork" if fork else "spawn")
    with tempfile.TemporaryDirectory(prefix="crew-") as folder:
        pairs = [context.Pipe() for _ in range(processes)]
        members = [
            context.Process(target=_work, args=(rank, processes, Path(folder), make, threads, pair[1]), daemon=True)
            for rank, pair in enumerate(pairs)
        ]
        sys.stdout.flush()
        for member, (_, theirs) in zip(members, pairs, strict=True):
            member.start()
            theirs.close()  # so that the end of a member is seen, where no other holds a copy
        try:
            yield Crew([pair[0] for pair in pairs])
        finally:
            for ours, _ in pairs:  # closing would tell nothing: later processes hold copies
                with suppress(BrokenPipeError):
                    ours.send("")
            for member in members:
                member.join(timeout=10)
                if member.is_alive():
                    member.kill()


def _work(rank: int, world: int, folder: Path, make: Make, threads: int, pipe: Connection) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    torch.set_num_threads(threads)
    try:
        if world > 1:
            dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
        once = make(Place(rank, world, rank, world, torch.device("cpu")))
        while pipe.recv():
            if world > 1:
                dist.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            result = once()
            pipe.send((time.perf_counter() - wall, time.process_time() - cpu, result))
    except Exception:
        pipe.send(traceback.format_exc())
    os._exit(0)  # nothing of the parent may run twice


def _loopback() -> str:
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
