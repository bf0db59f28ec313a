"""When a step does not get on: who is told of, and who is not."""

import os
import socket
import time

import pytest

from megaswitch.train.peers import Peer, Peers
from megaswitch.train.watchdog import Watchdog, hang_limit
from megaswitch.train.whereabouts import whereabouts

HERE = Peer(0, socket.gethostname(), os.getpid())
GONE = Peer(1, socket.gethostname(), 2**22 - 1)
FAR = Peer(2, "another-host", 1)


def peers(tmp_path, *some):
    return Peers(0, some, tmp_path / "trouble" / "now")


def watch(dog, seconds, phase="step", beat=False):
    with dog.watching():
        dog.enter(phase)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.02)
            if beat:
                dog.beat()


def test_alone_it_is_said_once_and_nothing_ends(tmp_path, caplog):
    ended = []
    watch(Watchdog(peers(tmp_path, HERE), 0.2, ended.append), 1.0)
    assert ended == [] and len(caplog.records) == 1
    assert "is busy with step" in caplog.text and list((tmp_path / "trouble" / "now").glob("rank-00000.json"))


@pytest.mark.parametrize(("phase", "beat"), [("step", True), ("", False)])
def test_whoever_gets_on_or_is_not_watched_is_let_be(tmp_path, caplog, phase, beat):
    watch(Watchdog(peers(tmp_path, HERE), 0.3), 1.0, phase, beat)
    assert not caplog.records and not (tmp_path / "trouble").exists()


def test_who_is_gone_and_who_is_silent(tmp_path, caplog):
    ended = []
    watch(Watchdog(peers(tmp_path, HERE, GONE, FAR), 0.3, ended.append), 1.2)
    assert ended == [76]
    assert "the step hangs: rank 1 " in caplog.text and "is gone" in caplog.text
    assert "rank 2" not in caplog.text, "one that is known to be gone is reason enough"


def test_a_silent_one_elsewhere_is_named_when_nobody_is_gone(tmp_path):
    some = peers(tmp_path, HERE, FAR)
    some.leave_word(whereabouts(0, 3, "step", 9.0, "all_gather:dp"))
    verdict = some.verdict(some.await_words(0.1))
    assert verdict.startswith("rank 2 (another-host, pid 1) does not answer; rank 0 (")
    assert "waits for all_gather:dp in step 3, for 9 s" in verdict


def test_words_that_cannot_be_read_are_none(tmp_path):
    some = peers(tmp_path, HERE)
    some.leave_word(whereabouts(0, 3, "step", 9.0, ""))
    for number, junk in enumerate((b"", b"[]", b'{"rank":1}', b"\xff")):
        (some.folder / f"rank-0001{number}.json").write_bytes(junk)
    assert list(some.words()) == [0]


def test_when_it_is_too_long():
    assert hang_limit(0.0, 600.0) == 480.0 and hang_limit(7.0, 600.0) == 7.0
