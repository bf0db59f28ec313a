"""A rank that dies, stops, hangs, raises or differs: the others end with 76 and name it, the next start goes on as if
nothing had happened."""

import ctypes
import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from faults.harness import assert_same, at_step, guarded, kill, run, small_run, weights
from train.corpus import with_train

from megaswitch.train import loop


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_in_a_step(tmp_path, corpus, undisturbed, victim):
    config = small_run(tmp_path, corpus, ep=2)
    codes, said = run(2, config, at_step(3, kill(signal.SIGKILL), on=[victim]))
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 76, said
    assert f"rank {victim} (" in said and "is gone" in said
    codes, said = run(2, config)
    assert codes == [0, 0] and "resumed from" in said, said
    assert_same(weights(config), undisturbed(2, ep=2))


def test_all_are_killed(tmp_path, corpus, undisturbed):
    config = small_run(tmp_path, corpus, ep=2)
    codes, said = run(2, config, at_step(4, kill(signal.SIGKILL), on=[0, 1]))
    assert codes == [-signal.SIGKILL] * 2, said
    assert run(2, config)[0] == [0, 0]
    assert_same(weights(config), undisturbed(2, ep=2))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_shows_its_stack(tmp_path, corpus, number):
    codes, said = run(2, small_run(tmp_path, corpus, ep=2), at_step(2, kill(number), on=[1]))
    assert codes == [76, -number], said
    assert ("Fatal Python error" in said and "in compute_gradients" in said) or "in compute" in said


def test_a_stopped_rank_is_named(tmp_path, corpus):
    config = guarded(small_run(tmp_path, corpus, ep=2), hang=5.0)
    codes, said = run_until_survivors_end(config, at_step(2, kill(signal.SIGSTOP), on=[1]))
    assert codes[0] == 76, said
    assert "the step hangs: rank 1 (" in said and "is stopped (SIGSTOP)" in said
    (word,) = tmp_path.glob("trouble/*/rank-*.json")
    told = json.loads(word.read_text())
    assert told["rank"] == 0 and told["step"] == 3 and ":" in told["waits_for"]
    assert any("compute_gradients" in line or "train_step" in line for line in told["stacks"]["MainThread"])


def run_until_survivors_end(config, arm):
    from faults.harness import ranks, wait

    with ranks(2, config, arm) as found:
        wait(found[:1])
        return [one.poll() for one in found], "\n".join(one.said for one in found)


def test_a_loader_that_is_stuck_is_named(tmp_path, corpus):
    def arm(rank):
        original = loop.micro_ranges

        def stuck(system, first):
            if rank == 1 and first >= 8:
                time.sleep(100)
            return original(system, first)

        loop.micro_ranges = stuck

    config = guarded(small_run(tmp_path, corpus, ep=2), hang=5.0)
    codes, said = run(2, replace(config, run=replace(config.run, preflight=False)), arm)
    assert codes == [76, 76], said
    assert "is busy with data in step 3" in said.split("the step hangs: rank 1")[1]


def test_a_held_interpreter_is_seen_from_outside(tmp_path, corpus):
    def hold():
        ctypes.PyDLL(None).sleep(60)  # a PyDLL's functions keep the interpreter's lock

    config = guarded(small_run(tmp_path, corpus, ep=2), hang=5.0)
    codes, said = run_until_survivors_end(config, at_step(2, hold, on=[1]))
    assert codes[0] == 76, said
    assert "does not answer" in said.split("the step hangs: rank 1")[1]


def test_a_straggler_is_named_with_its_phase(tmp_path, corpus):
    config = guarded(with_train(small_run(tmp_path, corpus, every=0, ep=2), steps=20), stragglers_every=20)

    def arm(rank):
        original = loop.train_step

        def slow(*arguments, **more):
            if rank == 1:
                time.sleep(0.1)
            return original(*arguments, **more)

        loop.train_step = slow

    codes, said = run(2, config, arm)
    assert codes == [0, 0], said
    assert "rank 1 holds up the others" in said and "most of all with its step" in said


def test_a_rank_that_raises(tmp_path, corpus, undisturbed):
    def fail():
        raise ZeroDivisionError("a fault of ours")

    config = small_run(tmp_path, corpus, ep=2)
    codes, said = run(2, config, at_step(3, fail, on=[1]))
    assert codes == [76, 70], said
    assert "ZeroDivisionError: a fault of ours" in said and "Traceback" in said
    assert run(2, config)[0] == [0, 0]
    assert_same(weights(config), undisturbed(2, ep=2))


def test_a_mismatched_collective_ends_all(tmp_path, corpus):
    """One rank sums a tensor that nobody else does: it takes the place of the next, of another size."""

    def sum_alone():
        dist.all_reduce(torch.ones(100_000))

    config = guarded(small_run(tmp_path, corpus, ep=2), hang=5.0)
    codes, said = run(2, config, at_step(2, sum_alone, on=[1]))
    assert all(code in (70, 76, -signal.SIGABRT) for code in codes), said
    assert "process died" in said or "the step hangs" in said


def test_ranks_that_were_started_differently(tmp_path, corpus):
    config = small_run(tmp_path, corpus, ep=2)

    def arm(rank):
        original = loop.facts
        if rank == 1:
            loop.facts = lambda c, data: original(replace(c, optim=replace(c.optim, lr=0.5)), data)

    codes, said = run(2, config, arm)
    assert codes == [64, 64], said
    assert "configuration: rank 1 has" in said or "configuration: rank 0 has" in said
    assert not Path(config.run.dir, "checkpoints").exists()
