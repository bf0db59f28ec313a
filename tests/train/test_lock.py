"""A run's folder has one owner; on hosts that share no locks, its signs of life tell."""

import socket
import threading

import orjson
import pytest

from megaswitch.train import lock
from megaswitch.train.lock import locked
from megaswitch.utils.errors import CannotWriteError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "_PATIENCE_SECONDS", 0.2)


def owner(folder, beats, host="another-host"):
    aside = folder / "aside"
    aside.write_bytes(orjson.dumps({"host": host, "pid": 7, "beats": beats}))
    aside.replace(folder / "owner.json")


def test_who_has_it_can_be_read_and_nothing_of_it_stays(tmp_path):
    with locked(tmp_path / "run", 0, None):
        told = orjson.loads((tmp_path / "run" / "owner.json").read_bytes())
        assert told["host"] == socket.gethostname() and told["beats"] >= 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_twice_is_once_too_often(tmp_path):
    taken = pytest.raises(CannotWriteError, match="in use by process")
    with locked(tmp_path, 0, None), taken, locked(tmp_path, 0, None):
        pass
    with locked(tmp_path, 0, None):
        pass


def test_signs_of_life_from_another_host(tmp_path):
    ended = threading.Event()

    def live():
        beats = 0
        while not ended.wait(0.05):
            beats += 1
            owner(tmp_path, beats)

    owner(tmp_path, 0)
    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(CannotWriteError, match="process 7 on another-host"), locked(tmp_path, 0, None):
            pass
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"host":"another-host","pid":7,"beats":3}', b"\xff"])
def test_whoever_gives_no_sign_has_left(tmp_path, content):
    (tmp_path / "owner.json").write_bytes(content)
    with locked(tmp_path, 0, None):
        assert orjson.loads((tmp_path / "owner.json").read_bytes())["host"] == socket.gethostname()
