"""Start-up and end of the process group, under torchrun or alone."""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore, Store

from megaswitch.topology.environment import process_number
from megaswitch.topology.nodes import gather_nodes, refuse_uneven
from megaswitch.utils.errors import PeerLostError, UserError

_MORE_SECONDS = 5.0
"""That a store which gives up by itself may take beyond its time."""


@dataclass(frozen=True)
class Place:
    """Where this process stands: its number, how many there are, and its device."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    device: torch.device


def find_place(device: Literal["auto", "cpu", "cuda"] = "auto") -> Place:
    """Read torchrun's variables; without them this is the only process. Starts nothing.

    UserError when one of them is no number, or when there is no GPU where one is wanted.
    """
    rank, local = process_number("RANK", 0), process_number("LOCAL_RANK", 0)
    world, local_world = process_number("WORLD_SIZE", 1, least=1), process_number("LOCAL_WORLD_SIZE", 1, least=1)
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UserError("run.device is cuda but torch finds no GPU here; use --run.device=cpu or install a CUDA build")
    if device == "cpu" or not available:
        return Place(rank, world, local, local_world, torch.device("cpu"))
    return Place(rank, world, local, local_world, torch.device("cuda", local))


def _single_node(place: Place) -> bool:
    return place.world == place.local_world


def _store(place: Place, timeout: timedelta) -> Store:
    """torchrun's store. On one node it is prefixed by the attempt, since torchrun keeps the dead attempt's
    addresses in it; on several nodes it must not be, because the attempt is counted by each agent alone."""
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not (port.isascii() and port.isdecimal()):
        raise UserError(f"the environment's MASTER_PORT is {port!r}, which is no port; torchrun sets it")
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    first = not shared and place.rank == 0
    store: Store = _in_time(
        lambda: TCPStore(host, int(port), place.world, is_master=first, timeout=timeout, multi_tenant=True), timeout
    )
    if _single_node(place):
        store = PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return store


def _in_time(make: Callable[[], TCPStore], timeout: timedelta) -> TCPStore:
    """What is made on a thread of its own; RuntimeError when that takes too long: a store waits for ever for an answer
    from a program that is none, and no signal reaches a process that waits there."""
    made: queue.SimpleQueue[TCPStore | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            made.put(make())
        except Exception as error:  # is raised where it is waited for
            made.put(error)

    threading.Thread(target=work, name="store", daemon=True).start()
    try:
        found = made.get(timeout=timeout.total_seconds() + _MORE_SECONDS)
    except queue.Empty:
        raise RuntimeError("whoever listens there does not answer as a store does") from None
    if isinstance(found, Exception):
        raise found
    return found


def cpu_group(place: Place, timeout: float) -> dist.ProcessGroup | None:
    """A gloo group of all ranks for messages and checkpoints, apart from training's collectives; None alone."""
    if place.world == 1:
        return None
    limit = timedelta(seconds=timeout)
    ranks = list(range(place.world))
    group: dist.ProcessGroup = dist.new_group(ranks, timeout=limit, backend="gloo", group_desc="checkpoint")
    return group


@contextmanager
def process_group(place: Place, seconds: float) -> Iterator[None]:
    """The world's process group for the length of a run; nothing is started for one process alone, nor when the
    caller has started one.

    A collective that takes longer than `seconds` ends the run. Raises PeerLostError when the others cannot be
    met, or when a collective fails because one of them is gone; UserError on every rank when the nodes have
    different numbers of processes.
    """
    started = place.world > 1 and not dist.is_initialized()
    if started:
        _meet(place, timedelta(seconds=seconds))
    try:
        if started:
            refuse_uneven(gather_nodes(place.local_rank, place.local_world, place.device), place.world)
        yield
    except RuntimeError as error:
        if not lost_a_peer(error):
            raise
        first = str(error).splitlines()[0]
        raise PeerLostError(f"rank {place.rank}: another process died or stopped answering ({first})") from error
    finally:
        if started:
            dist.destroy_process_group()


def _meet(place: Place, timeout: timedelta) -> None:
    backend = "nccl" if place.device.type == "cuda" else "gloo"
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
    try:
        store = _store(place, timeout)
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=timeout)
    except (KeyError, dist.DistError, RuntimeError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise PeerLostError(
            f"rank {place.rank} of {place.world} could not meet the others at {where}: {error}; "
            "check that all processes were started, with the same address and port"
        ) from error


def lost_a_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because of another process, as far as torch lets one tell."""
    signs = ("Connection reset", "Connection closed", "Connection refused", "Timed out", "Broken pipe", "NCCL")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)
