"""Through real torchrun: workers are killed and started again, signals save, the end is the same bit for bit."""

import signal
from pathlib import Path

import pytest
import torch
from faults.harness import assert_same
from faults.harness import run as run_forked
from faults.torchrun import arguments, job, kill_now_and_then, newest, weights

from megaswitch.config.load import load
from megaswitch.model.presets import presets
from megaswitch.train.config import RunConfig

STEPS = 40
pytestmark = pytest.mark.timeout(300)  # torchrun and its workers import torch one after the other on two cores


@pytest.fixture(scope="module")
def expected(tmp_path_factory, corpus) -> dict[str, torch.Tensor]:
    """Without torchrun, on forked ranks."""
    folder = tmp_path_factory.mktemp("expected") / "run"
    command = arguments(folder, corpus, f"--train.steps={STEPS}")
    codes, said = run_forked(2, load(RunConfig, presets(), command, "megaswitch train", ""))
    assert codes == [0, 0], said
    return weights(folder)


def test_a_killed_worker_is_started_again(tmp_path, corpus, expected):
    folder = tmp_path / "run"
    with job(arguments(folder, corpus, f"--train.steps={STEPS}"), tmp_path / "log", MAX_RESTARTS="3") as run:
        run.until(lambda: newest(folder) >= 4)
        run.workers()[0].send_signal(signal.SIGKILL)  # the first rank, which holds the meeting point
        assert run.process.wait(timeout=110) == 0, run.said
        assert "resumed from" in run.said and "is gone" in run.said
    assert_same(weights(folder), expected)


def test_a_stopped_worker_is_named_and_all_are_started_again(tmp_path, corpus, expected):
    folder = tmp_path / "run"
    more = [f"--train.steps={STEPS}", "--guard.hang=5"]
    with job(arguments(folder, corpus, *more), tmp_path / "log", MAX_RESTARTS="3", STOP_SECONDS="2") as run:
        run.until(lambda: newest(folder) >= 4)
        run.workers()[1].send_signal(signal.SIGSTOP)
        assert run.process.wait(timeout=110) == 0, run.said
        assert "the step hangs: rank 1 (" in run.said and "is stopped (SIGSTOP)" in run.said
    assert_same(weights(folder), expected)


def test_twenty_seconds_from_sigterm_to_the_end(tmp_path, corpus, expected):
    """As Slurm and Kubernetes end a job; then the same command again."""
    folder = tmp_path / "run"
    command = arguments(folder, corpus, f"--train.steps={STEPS}", "--checkpoint.every=0")
    with job(command, tmp_path / "log", STOP_SECONDS="20") as run:
        run.until(lambda: Path(folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size > 1000)
        run.process.send_signal(signal.SIGTERM)
        run.process.wait(timeout=25)
        assert 0 < newest(folder) < STEPS, run.said
        assert "stopped by a signal after step" in run.said
    with job(command, tmp_path / "log") as run:
        assert run.process.wait(timeout=110) == 0, run.said
    assert_same(weights(folder), expected)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_sigusr1_through_torchrun(tmp_path, corpus, expected):
    folder = tmp_path / "run"
    command = arguments(folder, corpus, f"--train.steps={STEPS}")
    with job(command, tmp_path / "log", STOP_SECONDS="20") as run:
        run.until(lambda: newest(folder) >= 4)
        run.process.send_signal(signal.SIGUSR1)
        run.process.wait(timeout=25)
        assert "SIGUSR1: finishing this step" in run.said
    with job(command, tmp_path / "log") as run:
        assert run.process.wait(timeout=110) == 0, run.said
    assert_same(weights(folder), expected)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_thirty_random_kills(tmp_path, corpus):
    """In steps, in saves, in loads and in starts: of each attempt a random worker dies after a random while."""
    steps, found = 2000, []
    for name, kills in (("expected", 0), ("killed", 30)):
        folder = tmp_path / name
        command = arguments(folder, corpus, f"--train.steps={steps}", "--checkpoint.every=20")
        with job(command, tmp_path / f"{name}.log", MAX_RESTARTS="60", STOP_SECONDS="10") as run:
            killed = kill_now_and_then(run, kills, seed=0, most=12.0)
            assert run.process.wait(timeout=900) == 0, run.said[-5000:]
            assert killed == kills
        found.append(weights(folder))
    assert_same(*found)
