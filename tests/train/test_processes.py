"""Real processes, as torchrun starts them: a peer that dies, and signals."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from train.corpus import MODEL_ARGUMENTS, write_corpus

from megaswitch.checkpoint.choose import committed

SECONDS = 90
ARGUMENTS = [
    *MODEL_ARGUMENTS,
    "--layout.ep=2",
    "--train.global_batch=4",
    "--train.steps=1000000",
    "--checkpoint.every=20",
    "--checkpoint.keep=2",
    "--run.threads=1",
    "--run.device=cpu",
    "--log.tensorboard=false",
]


def start(rank: int, port: int, folder: Path, corpus: Path, log: Path) -> subprocess.Popen[bytes]:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    env = {**os.environ, **{k: str(v) for k, v in names.items()}, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "megaswitch", "train", *ARGUMENTS, f"--run.dir={folder}", f"--data.train={corpus}"]
    with open(log, "ab") as out:
        return subprocess.Popen(command, env=env, stdout=out, stderr=out)


@pytest.fixture
def pair(tmp_path) -> Iterator[tuple[list[subprocess.Popen[bytes]], Path, Path]]:
    """Two processes that train until they are stopped, their run folder and what they said."""
    corpus, folder, log = write_corpus(tmp_path / "corpus"), tmp_path / "run", tmp_path / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(rank, port, folder, corpus, log) for rank in range(2)]
    try:
        wait_for_a_checkpoint(processes, folder, log)
        yield processes, folder, log
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for_a_checkpoint(processes: list[subprocess.Popen[bytes]], folder: Path, log: Path) -> None:
    limit = time.monotonic() + SECONDS
    while not committed(folder / "checkpoints"):
        assert time.monotonic() < limit and all(p.poll() is None for p in processes), log.read_text()
        time.sleep(0.1)


def test_the_survivor_of_a_killed_peer_ends_at_once_with_its_own_code(pair):
    processes, _, log = pair
    processes[1].send_signal(signal.SIGKILL)
    assert processes[0].wait(timeout=SECONDS) == 76, log.read_text()
    assert "another process died" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_all_after_the_step_and_saves(pair, number):
    processes, folder, log = pair
    processes[1].send_signal(number)
    assert [p.wait(timeout=SECONDS) for p in processes] == [75, 75], log.read_text()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    newest = committed(folder / "checkpoints")[0]
    assert newest.name == f"step-{len(lines):08d}"
