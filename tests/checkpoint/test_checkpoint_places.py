"""Checkpoints in object stores (in memory, and a folder by its URL), and files that lead elsewhere."""

import os
import uuid

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.checkpoint.choose import choose, committed
from megaswitch.checkpoint.folders import folder_at, read_whole
from megaswitch.checkpoint.format import Piece
from megaswitch.checkpoint.places import Url, place
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.retention import prune
from megaswitch.checkpoint.store import refuse_unwritable, save
from megaswitch.params.boxes import Box
from megaswitch.utils.errors import CannotWriteError, DataError, MissingInputError, UserError

SHARD = "shard-00000.safetensors"


@pytest.fixture(params=["disk", "file", "memory"])
def root(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "run"
    return place(f"file://{tmp_path}/run" if request.param == "file" else f"memory://{uuid.uuid4().hex}/run/")


def write(root, step):
    x = torch.arange(12.0).reshape(4, 3) + step
    return save(root, step, [Piece("x", (4, 3), Box((0, 0), (4, 3)), x)], {"samples": step}, None)


def steps(root):
    return [Reader(path).step for path in committed(root)]


def test_saved_chosen_read_and_pruned(root):
    assert committed(root) == []
    assert choose(root, "auto") is None
    for step in (1, 2, 3):
        assert write(root, step) == root / f"step-0000000{step}"
    assert choose(root, "auto") == root / "step-00000003"
    assert choose(root, str(root / "step-00000001")) == root / "step-00000001"
    read = Reader(root / "step-00000002").read("x", Box((1, 1), (2, 2)))
    assert torch.equal(read, (torch.arange(12.0).reshape(4, 3) + 2)[1:3, 1:3])
    with pytest.raises(MissingInputError):
        choose(root, str(root / "step-00000009"))
    prune(root, 2)
    assert steps(root) == [3, 2]
    assert folder_at(root / "step-00000001").sizes() == {}


def test_a_save_that_ended_before_its_manifest_is_none(root):
    write(root, 1)
    folder = folder_at(root / "step-00000002")
    folder.make()
    for name in (SHARD, "shard-00001.safetensors"):
        with folder.sink(name) as out:
            out(b"half")
    assert choose(root, "auto") == root / "step-00000001"
    write(root, 2)  # what was left does not stand in the way
    assert choose(root, "auto") == root / "step-00000002"


def test_a_damaged_one_moves_aside(root):
    write(root, 1)
    folder = folder_at(root / "step-00000001")
    data = read_whole(folder, SHARD, 1 << 20)
    folder.discard(SHARD)
    with folder.sink(SHARD) as out:
        out(data[:-1] + b"\7")
    with pytest.raises(DataError, match="bytes are damaged"):
        choose(root, "auto")
    write(root, 1)
    assert choose(root, "auto") == root / "step-00000001"
    assert sum(".bad-" in name for name in folder_at(root).folders()) == 1


def test_a_failed_save_leaves_nothing(root):
    write(root, 1)
    with pytest.raises(CannotWriteError, match="elements"):
        save(root, 2, [Piece("x", (4,), Box((0,), (3,)), torch.zeros(3))], {}, None)
    assert folder_at(root).folders() == ["step-00000001"]


def test_ranks_write_to_a_store(world, tmp_path):
    def work():
        rank, url = dist.get_rank(), place(f"file://{tmp_path}/run")
        save(url, 3, [Piece("x", (4,), Box((2 * rank,), (2,)), torch.ones(2) * rank)], {}, dist.group.WORLD)
        return Reader(url / "step-00000003").read_all("x").tolist()

    assert world(2, work) == [[0, 0, 1, 1]] * 2


def test_unwritable_places_are_refused_at_the_start(root, tmp_path):
    refuse_unwritable(root)
    assert folder_at(root).sizes() == {}
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", place(f"file://{tmp_path}/file")):
        with pytest.raises(CannotWriteError, match="choose another"):
            refuse_unwritable(bad)


def test_a_scheme_that_nobody_knows():
    with pytest.raises(UserError, match="nonsense://bucket/run cannot be used: Protocol not known"):
        choose(place("nonsense://bucket/run"), "auto")


def test_urls():
    url = place("s3://bucket/run/")
    assert str(url) == "s3://bucket/run" and url.name == "run"
    assert url / "step" == Url("s3://bucket/run/step")
    assert (url / "step").parent == url
    assert url.with_name("other") == Url("s3://bucket/other")
    assert str(place("runs/x")) == "runs/x" and not isinstance(place("runs/x"), Url)


@given(st.data())
def test_any_bytes_of_a_file(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("bytes")
    content = data.draw(st.binary(max_size=50))
    (root / "f").write_bytes(content)
    start = data.draw(st.integers(0, len(content)))
    count = data.draw(st.integers(0, len(content) - start))
    for where in (root, place(f"file://{root}")):
        source, out = folder_at(where).source("f"), np.empty(count, dtype=np.uint8)
        source.read_into(start, out)
        assert out.tobytes() == content[start : start + count]
        with pytest.raises(OSError, match="before its time"):
            source.read_into(start, np.empty(len(content) - start + 1, dtype=np.uint8))


LEADS_ELSEWHERE = {
    "link": lambda path, secret: path.symlink_to(secret),
    "link to a device": lambda path, secret: path.symlink_to("/dev/zero"),
    "link to nothing": lambda path, secret: path.symlink_to("nowhere"),
    "pipe": lambda path, secret: os.mkfifo(path),
    "folder": lambda path, secret: path.mkdir(),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [SHARD, "manifest.json"])
@pytest.mark.parametrize("kind", LEADS_ELSEWHERE)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_what_is_no_regular_file_is_never_opened(tmp_path, name, kind, scheme):
    folder = write(tmp_path, 1)
    secret = tmp_path / "secret"
    (folder / name).rename(secret)
    LEADS_ELSEWHERE[kind](folder / name, secret)
    with pytest.raises(DataError, match=name):
        Reader(place(f"{scheme}{folder}"))
    with pytest.raises(OSError):
        folder_at(place(f"{scheme}{folder}")).source(name)
