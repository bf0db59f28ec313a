"""The `world` and `golden` fixtures themselves."""

import ctypes
import os
import signal
import time
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Answer:
    rank: int
    total: torch.Tensor


def rank_and_total(scale: int) -> Answer:
    total = torch.tensor([dist.get_rank() * scale])
    dist.all_reduce(total)
    return Answer(dist.get_rank(), total)


def no_child_left() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return True


@pytest.mark.parametrize("n", [1, 2, 4])
def test_results_come_by_rank(world, n):
    results = world(n, rank_and_total, 10)
    assert [r.rank for r in results] == list(range(n))
    assert all(r.total.item() == 10 * sum(range(n)) for r in results)
    assert no_child_left()


def test_closures_and_gradients(world):
    x = torch.ones(3, requires_grad=True)

    def work():
        (x * (dist.get_rank() + 1)).sum().backward()
        return {"grad": x.grad, "n": dist.get_world_size()}

    results = world(2, work)
    assert [r["grad"].tolist() for r in results] == [[1.0] * 3, [2.0] * 3]
    assert x.grad is None


def test_a_failing_rank_is_named_and_ends_all(world):
    def work():
        if dist.get_rank() == 1:
            raise ArithmeticError("rank one is wrong")
        dist.barrier()

    with pytest.raises(RuntimeError, match=r"(?s)^rank 1: .*ArithmeticError: rank one is wrong"):
        world(3, work)
    assert no_child_left()


def test_a_killed_rank_is_noticed(world):
    def work():
        if dist.get_rank() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(30)

    with pytest.raises(RuntimeError, match="rank 0: died without a word"):
        world(2, work)
    assert no_child_left()


def test_a_crashed_rank_shows_where_it_stood(world):
    def crashing_here():
        ctypes.string_at(0)

    with pytest.raises(RuntimeError, match=r"(?s)died without a word: Fatal Python error.*crashing_here"):
        world(1, crashing_here)
    assert no_child_left()


def test_a_hung_rank_is_ended_and_shows_where_it_stood(world):
    def sleeping_here():
        if dist.get_rank() == 1:
            time.sleep(60)

    with pytest.raises(RuntimeError, match=r"(?s)rank 1: gave no answer.*sleeping_here"):
        world(2, sleeping_here, limit=2.0)
    assert no_child_left()


def test_an_interrupt_leaves_no_child(world):
    def work():
        time.sleep(60)

    def interrupt(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    pid = os.fork()
    if pid == 0:
        time.sleep(1)
        os.kill(os.getppid(), signal.SIGUSR1)
        os._exit(0)
    try:
        with pytest.raises(KeyboardInterrupt):
            world(2, work)
    finally:
        signal.signal(signal.SIGUSR1, before)
    os.waitpid(pid, 0)
    assert no_child_left()


def test_golden_vectors_are_found(golden):
    assert {"x", "W"} <= set(golden("router_top2"))
    assert all(counts["total"] > 0 for counts in golden("param_counts.json").values())


@pytest.mark.long
def test_long_is_asked_for(request):
    assert request.config.getoption("--long")
