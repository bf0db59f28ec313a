"""Writing: whole or not at all, the old corpus safe until the new one is ready, refusals of the system translated."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.writer import IndexedWriter, write_files
from megaswitch.utils.errors import CannotWriteError, DataError


def test_leaving_without_finish_removes_what_was_written(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), IndexedWriter(tmp_path / "x", np.dtype("<u2")) as writer:
        writer.add_document([1, 2])
        assert len(os.listdir(tmp_path)) == 1
        raise RuntimeError("stop")
    assert os.listdir(tmp_path) == []


def test_the_old_corpus_stays_until_the_new_one_is_whole(tmp_path, make_corpus):
    prefix = make_corpus([[1, 2, 3]])
    with IndexedWriter(prefix, np.dtype("<u2")) as writer:
        writer.add_document([9])
        assert IndexedCorpus(prefix).document(0).tolist() == [1, 2, 3]
        writer.finish()
    assert IndexedCorpus(prefix).document(0).tolist() == [9]
    assert len(os.listdir(tmp_path)) == 3


@pytest.mark.parametrize("fails_at", range(1, 5))
def test_no_index_ever_stands_without_its_bin(fails_at, tmp_path, monkeypatch, make_corpus):
    """The machine stops before the n-th rename or removal of the commit: what is left opens whole, or has no index."""
    prefix = make_corpus([[1, 2, 3]])
    calls = iter(range(1, 10))

    def stopping(real):
        def call(*args, **kwargs):
            if next(calls) == fails_at:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return call

    with pytest.raises(KeyboardInterrupt), IndexedWriter(prefix, np.dtype("<u2")) as writer:
        writer.add_document([9, 9])
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stopping(Path.replace))
            patch.setattr(Path, "unlink", stopping(Path.unlink))
            writer.finish()
    if os.path.exists(f"{prefix}.idx"):
        assert IndexedCorpus(prefix).document(0).tolist() in ([1, 2, 3], [9, 9])
    else:
        assert fails_at > 1


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError, match="cannot write") as caught:
        IndexedWriter(tmp_path / "file" / "x", np.dtype("<u2"))
    assert caught.value.exit_code == 73


def test_no_space_left(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    with IndexedWriter(tmp_path / "x", np.dtype("<u2")) as writer:
        writer.add_document([1])
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(CannotWriteError, match="No space left on device"):
            writer.finish()
    assert os.listdir(tmp_path) == []


def test_ids_that_do_not_fit_are_refused(tmp_path):
    with IndexedWriter(tmp_path / "x", np.dtype("<u2")) as writer:
        for bad in ([65_536], [-1]):
            with pytest.raises(DataError, match="does not fit"):
                writer.add_document(bad)


def test_several_files_appear_together_or_not_at_all(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError):
        write_files({tmp_path / "a": b"1", tmp_path / "file" / "b": b"2"})
    assert os.listdir(tmp_path) == ["file"]
    write_files({tmp_path / "a": b"1", tmp_path / "folder" / "b": b"2"})
    assert (tmp_path / "folder" / "b").read_bytes() == b"2" and sorted(os.listdir(tmp_path)) == ["a", "file", "folder"]


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    (tmp_path / "x.bin.tmp-dead").write_bytes(b"1")
    (tmp_path / "x.idx.tmp-dead").write_bytes(b"1")
    (tmp_path / "xy.bin.tmp-dead").write_bytes(b"1")
    with IndexedWriter(tmp_path / "x", np.dtype("<u2")) as first:
        first.add_document([1])
        assert sorted(name[:7] for name in os.listdir(tmp_path)) == ["x.bin.t", "xy.bin."]
        with IndexedWriter(tmp_path / "x", np.dtype("<u2")) as second:
            second.add_document([2])
            second.finish()
        first.finish()
    assert IndexedCorpus(tmp_path / "x").document(0).tolist() == [1]


def test_memory_does_not_grow_with_the_documents(tmp_path):
    """Four million documents, whose index takes 80 MB, in a process that may grow by some 40."""
    code = """
import resource, sys
import numpy as np
from megaswitch.data.writer import IndexedWriter
with IndexedWriter(sys.argv[1], np.dtype("<u2")) as writer:
    for part in range(40):
        if part == 4:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        writer.add_documents(np.ones(100_000, np.uint16), np.ones(100_000, np.int64))
    writer.finish()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True, check=True)
    assert (tmp_path / "x.idx").stat().st_size == 34 + 20 * 4_000_000 + 8 and float(done.stdout) < 50
