"""Disks that are full, folders that cannot be written or are taken, loggers that are down, signals in a save."""

import errno
import os
import resource
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from faults.harness import assert_same, ranks, run, small_run, until, wait, weights
from train.corpus import with_train

from megaswitch.checkpoint import store
from megaswitch.checkpoint.choose import choose, committed
from megaswitch.train import loop
from megaswitch.train.guards import Grace


def names(config):
    return [path.name for path in committed(Path(config.run.dir) / "checkpoints")]


def test_a_disk_that_is_full_for_a_while(tmp_path, corpus, undisturbed):
    """The limit on file sizes is what a quota is: saves in which it holds fail, training goes on, nothing is left."""

    def arm(rank):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        original = loop.train_step

        def limited(system, sequences, number, **more):
            soft = 20_000 if number in (2, 3) else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
            return original(system, sequences, number, **more)

        loop.train_step = limited

    config = small_run(tmp_path, corpus, ep=2)
    config = replace(config, checkpoint=replace(config.checkpoint, asynchronous=False, keep=0))
    codes, said = run(2, config, arm)
    assert codes == [0, 0], said
    assert "checkpoint of step 3 failed, training goes on: rank" in said and "File too large" in said
    assert names(config) == [f"step-{n:08d}" for n in (6, 5, 2, 1)]
    assert not list(tmp_path.glob("checkpoints/*.tmp-*"))
    assert_same(weights(config), undisturbed(2, ep=2))


def test_too_many_open_files_end_no_run(tmp_path, corpus):
    def arm(rank):
        original = loop.train_step

        def limited(system, sequences, number, **more):
            most = 4096
            if number == 2:
                os.close(most := os.dup(0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            return original(system, sequences, number, **more)

        loop.train_step = limited

    config = small_run(tmp_path, corpus)
    codes, said = run(1, replace(config, checkpoint=replace(config.checkpoint, asynchronous=False, keep=0)), arm)
    assert codes == [0], said
    assert "Too many open files" in said and names(config)[0] == "step-00000006"


@pytest.mark.parametrize("place", ["/proc/run", "{tmp}/file/run"])
def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path, corpus, place):
    (tmp_path / "file").write_text("in the way")
    codes, said = run(2, small_run(Path(place.format(tmp=tmp_path)), corpus))
    assert codes == [73, 73], said
    assert "--run.dir" in said and "step 1/" not in said


def test_checkpoints_that_have_no_room_are_refused_at_the_start(tmp_path, corpus):
    def arm(rank):
        from megaswitch.checkpoint.disk import DiskFolder

        DiskFolder.free = lambda self: 1000

    codes, said = run(2, small_run(tmp_path, corpus), arm)
    assert codes == [73, 73], said
    assert "one checkpoint needs 154 kB, 1 kB are free" in said


def test_a_second_job_in_the_folder(tmp_path, corpus):
    config = with_train(small_run(tmp_path, corpus, every=1), steps=1000)
    with ranks(1, config) as first:
        until(lambda: names(config), lambda: first[0].said)
        codes, said = run(1, config)
        assert codes == [73], said
        assert f"in use by process {first[0].pid} on " in said
        assert first[0].poll() is None
        first[0].send(signal.SIGKILL)
        wait(first)
    with ranks(1, config) as third:
        until(lambda: "resumed from" in third[0].said, lambda: third[0].said)


def slow_writes(seconds, path):
    """Every shard takes a while, and says when it begins."""

    def arm(rank):
        original = store.write_shard

        def slow(*arguments):
            path.touch()
            time.sleep(seconds)
            return original(*arguments)

        store.write_shard = slow

    return arm


def test_a_second_signal_in_the_last_save_ends_at_once_and_spoils_nothing(tmp_path, corpus, undisturbed):
    began, config = tmp_path / "began", small_run(tmp_path / "run", corpus, every=0)
    assert run(1, with_train(config, stop_after=2))[0] == [0]
    with ranks(1, config, slow_writes(60.0, began)) as (only,):
        until(lambda: "step 3/" in only.said or "loss" in only.said or "mock" in only.said, lambda: only.said)
        only.send(signal.SIGTERM)
        until(began.exists, lambda: only.said)
        only.send(signal.SIGTERM)
        assert wait([only], 10) == [-signal.SIGTERM], only.said
        assert "a second signal ends at once" in only.said
    assert names(config) == ["step-00000002"]
    assert run(1, config)[0] == [0]
    assert_same(weights(config), undisturbed(1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_lets_the_step_finish_and_saves(tmp_path, corpus, undisturbed, number):
    def arm(rank):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent's tests ignore it
        original = loop.train_step

        def signalled(system, sequences, step, **more):
            if step == 2 and rank == 0:
                os.kill(os.getpid(), number)
            return original(system, sequences, step, **more)

        loop.train_step = signalled

    config = small_run(tmp_path, corpus, every=0)
    codes, said = run(2, config, arm)
    assert codes == [75, 75], said
    assert names(config) == ["step-00000003"]
    assert run(2, config)[0] == [0, 0]
    assert_same(weights(config), undisturbed(2))


def test_killed_when_the_grace_is_over(tmp_path, corpus, undisturbed):
    began, config = tmp_path / "began", small_run(tmp_path / "run", corpus, every=0)
    assert run(1, with_train(config, stop_after=2))[0] == [0]
    with ranks(1, config, slow_writes(60.0, began)) as (only,):
        until(lambda: "mock" in only.said, lambda: only.said)
        only.send(signal.SIGTERM)
        until(began.exists, lambda: only.said)
        only.send(signal.SIGKILL)
        assert wait([only]) == [-signal.SIGKILL]
    assert run(1, config)[0] == [0]
    assert_same(weights(config), undisturbed(1))


def test_a_save_that_is_longer_than_the_grace_is_warned_of(caplog):
    class Saver:
        busy = True

    grace, saver = Grace(0.01), Saver()
    grace.begun()
    grace.look(3, saver)
    assert not caplog.records
    time.sleep(0.02)
    saver.busy = False
    grace.look(4, saver)
    grace.look(5, saver)
    assert [r.getMessage()[:7] for r in caplog.records] == ["step 4:"] and "guard.grace" in caplog.text
    unknown = Grace(0.0)
    unknown.begun()
    unknown.look(6, saver)
    assert len(caplog.records) == 1


def test_a_file_named_latest_decides_nothing(tmp_path, corpus):
    config = small_run(tmp_path, corpus, every=3)
    assert run(1, config)[0] == [0]
    root = tmp_path / "checkpoints"
    for latest in (b"step-00000003", b"", b"step-00000099\n", b"\xff\xfe"):
        (root / "latest").write_bytes(latest)
        assert choose(root, "auto") == root / "step-00000006"
    (root / "latest").unlink()
    (root / "latest").symlink_to(root / "step-00000042")
    assert choose(root, "auto") == root / "step-00000006"


def test_loggers_that_are_down_end_no_run(tmp_path, corpus):
    def arm(rank):
        from megaswitch.train.board import Board
        from megaswitch.train.run_folder import Metrics

        def broken(self, *arguments):
            raise RuntimeError("the board is down")

        def full(self, line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        Board.scalars, Metrics.write = broken, full

    config = small_run(tmp_path, corpus, every=0)
    codes, said = run(1, replace(config, log=replace(config.log, tensorboard=True)), arm)
    assert codes == [0], said
    assert said.count("no more TensorBoard events: RuntimeError: the board is down") == 1
    assert "step 1 is not recorded" in said and "No space left on device" in said


def test_nothing_is_unpickled_and_no_secret_is_written(tmp_path, corpus):
    """An audit hook sees every pickle that finds a class, from the reading of the checkpoint on."""

    def arm(rank):
        os.environ["AWS_SECRET_ACCESS_KEY"] = os.environ["WANDB_API_KEY"] = "canary-7f3a"
        armed = []
        original = loop.find_start

        def find(*arguments):
            armed.append(True)
            return original(*arguments)

        def hook(event, arguments):
            if armed and event == "pickle.find_class":
                os.write(2, f"FOUND A CLASS {arguments}\n".encode())

        loop.find_start = find
        sys.addaudithook(hook)

    config = small_run(tmp_path, corpus, every=2)
    assert run(2, with_train(config, stop_after=3), arm)[0] == [0, 0]
    codes, said = run(2, config, arm)
    assert codes == [0, 0] and "resumed from" in said
    assert "FOUND A CLASS" not in said and "canary-7f3a" not in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5 and all(b"canary-7f3a" not in path.read_bytes() for path in files)

