"""Runs work in processes of this machine: numbers go out one at a time, and come back when done, in any order.

A worker ends with its parent, however that ends. An error ends them all at once: what they had half done is thrown away
and done again by the next run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess

from megaswitch.utils.errors import DataError, UserError

Work = Callable[[int], int]
Pipe = connection.Connection


def run_here(work: Work, numbers: Sequence[int], workers: int) -> Iterator[int]:
    """`work` of every number, in `workers` processes, or in this one where one is enough.

    Raises what work raised, and DataError where a worker dies.
    """
    if min(workers, len(numbers)) <= 1:
        yield from map(work, numbers)
        return
    context = get_context("fork")
    crew: dict[Pipe, BaseProcess] = {}
    try:
        for _ in range(min(workers, len(numbers))):
            here, there = context.Pipe()
            process: BaseProcess = context.Process(target=_serve, args=(there, work, os.getpid()), daemon=True)
            process.start()
            there.close()
            crew[here] = process
        yield from _deal(crew, list(reversed(numbers)))
    finally:
        for pipe, process in crew.items():
            process.kill()
            process.join()
            pipe.close()


def _deal(crew: dict[Pipe, BaseProcess], waiting: list[int]) -> Iterator[int]:
    busy = set(crew)
    for pipe in crew:
        pipe.send(waiting.pop())
    while busy:
        ready = connection.wait(list(busy))
        for pipe in [pipe for pipe in busy if pipe in ready]:
            try:
                answer = pipe.recv()
            except EOFError:
                raise DataError("a worker process died, perhaps for want of memory: try fewer --workers") from None
            if isinstance(answer, BaseException):
                raise answer
            if waiting:
                pipe.send(waiting.pop())
            else:
                busy.remove(pipe)
            yield answer


def _serve(pipe: Pipe, work: Work, parent: int) -> None:
    _end_with(parent)
    while True:
        try:
            pipe.send(work(pipe.recv()))
        except EOFError:
            return
        except (UserError, OSError) as error:
            pipe.send(error)
        except Exception:
            pipe.send(RuntimeError(traceback.format_exc()))


def _end_with(parent: int) -> None:
    """Has the kernel end this process with its parent (Linux; elsewhere it ends when it next asks for work)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent alone answers it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
