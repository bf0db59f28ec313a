"""Saving on any number of ranks and reading any part back; ranks that fail; processes that die on the way."""

import os

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from megaswitch.checkpoint import store
from megaswitch.checkpoint.choose import choose
from megaswitch.checkpoint.disk import DiskFolder
from megaswitch.checkpoint.format import Piece, TensorInfo
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.store import save
from megaswitch.params.boxes import Box, boxes
from megaswitch.utils.errors import CannotWriteError, DataError

STATE = {"samples": 48, "config": {"model": {"d_ff": 8, "rate": None}}, "note": "ä"}


def tensors():
    g = torch.Generator().manual_seed(0)
    return {
        "weight/a": torch.randn(6, 5, generator=g),
        "weight/experts": torch.randn(4, 3, 2, generator=g, dtype=torch.float64),
        "weight/half": torch.randn(7, generator=g).bfloat16(),
        "exp_avg/count": torch.tensor(3),
        "flags": torch.tensor([True, False, True]),
        "nothing": torch.zeros(0, 3),
    }


def pieces_of(rank, world, everything):
    """Each tensor's elements in equal flat ranges: whole rows, parts of rows, or nothing for a rank."""
    for name, x in everything.items():
        size = -(-x.numel() // world)
        for box in boxes(rank * size, min((rank + 1) * size, x.numel()), x.shape):
            yield Piece(name, tuple(x.shape), box, x[box.slices])
        if x.numel() == 0:
            yield Piece(name, tuple(x.shape), Box((0,) * x.dim(), tuple(x.shape)), x)


def save_as_rank(root, step=7, state=STATE, everything=None):
    mine = pieces_of(dist.get_rank(), dist.get_world_size(), everything or tensors())
    return save(root, step, mine, state, dist.group.WORLD)


def names(root):
    return sorted(path.name for path in root.iterdir())


@pytest.mark.parametrize("n", [1, 2, 4])
def test_any_number_of_ranks_saves_and_one_process_reads(world, tmp_path, n):
    assert world(n, save_as_rank, tmp_path) == [tmp_path / "step-00000007"] * n
    assert names(tmp_path) == ["step-00000007"]
    reader = Reader(tmp_path / "step-00000007")
    assert reader.step == 7
    assert reader.state == STATE
    for name, x in tensors().items():
        assert reader.tensors[name] == TensorInfo(tuple(x.shape), x.dtype)
        assert torch.equal(reader.read_all(name), x)
        assert reader.read_all(name).dtype == x.dtype


def test_one_process_without_a_group(tmp_path):
    path = save(tmp_path / "deep" / "er", 0, pieces_of(0, 1, tensors()), {}, None)
    assert torch.equal(Reader(path).read_all("weight/a"), tensors()["weight/a"])


@pytest.fixture(scope="module")
def written(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("written")
    world(4, save_as_rank, root)
    return root / "step-00000007"


@settings(max_examples=100)
@given(data=st.data(), name=st.sampled_from(sorted(tensors())))
def test_any_box_can_be_read(written, data, name):
    x = tensors()[name]
    offset = tuple(data.draw(st.integers(0, n)) for n in x.shape)
    shape = tuple(data.draw(st.integers(0, n - o)) for o, n in zip(offset, x.shape, strict=True))
    box = Box(offset, shape)
    assert torch.equal(Reader(written, verify=False).read(name, box), x[box.slices])


def test_reading_in_another_dtype_is_asked_for(written):
    read = Reader(written).read("weight/a", Box((1, 1), (2, 2)), torch.float64)
    assert read.dtype == torch.float64
    assert torch.equal(read, tensors()["weight/a"][1:3, 1:3].double())


def test_reading_what_is_not_there(written):
    reader = Reader(written)
    with pytest.raises(DataError, match="no tensor weight/b"):
        reader.read("weight/b", Box((), ()))
    for box in (Box((0, 0), (7, 5)), Box((0,), (6,)), Box((-1, 0), (1, 1))):
        with pytest.raises(DataError, match="not within"):
            reader.read("weight/a", box)


def test_shards_are_files_that_the_safetensors_library_reads(written):
    with safe_open(str(written / "shard-00000.safetensors"), framework="pt") as file:
        assert torch.equal(file.get_tensor("exp_avg/count@"), torch.tensor(3))
        assert torch.equal(file.get_tensor("weight/half@0"), tensors()["weight/half"][:2])


def test_strided_and_gradient_tensors(tmp_path):
    x = torch.randn(4, 6, requires_grad=True)
    path = save(tmp_path, 1, [Piece("x", (6, 4), Box((0, 0), (6, 4)), x.t())], {}, None)
    assert torch.equal(Reader(path).read_all("x"), x.detach().t())


def test_equal_copies_on_several_ranks_are_kept_once(world, tmp_path):
    x = torch.arange(6.0)

    def work():
        return save(tmp_path, 1, [Piece("x", (6,), Box((0,), (6,)), x)], {}, dist.group.WORLD)

    (path, _) = world(2, work)
    assert torch.equal(Reader(path).read_all("x"), x)


def test_saving_a_committed_step_again_changes_nothing(world, tmp_path, caplog):
    world(2, save_as_rank, tmp_path)
    before = (tmp_path / "step-00000007" / "manifest.json").read_bytes()
    world(1, save_as_rank, tmp_path, 7, {"samples": 0})
    assert (tmp_path / "step-00000007" / "manifest.json").read_bytes() == before
    assert names(tmp_path) == ["step-00000007"]
    save(tmp_path, 7, [], {}, None)
    assert "stays as it is" in caplog.text


def test_a_damaged_step_gives_way(world, tmp_path):
    world(2, save_as_rank, tmp_path)
    (tmp_path / "step-00000007" / "shard-00001.safetensors").unlink()
    world(1, save_as_rank, tmp_path)
    assert len(names(tmp_path)) == 2
    assert names(tmp_path)[1].startswith("step-00000007.bad-")
    assert Reader(tmp_path / "step-00000007").step == 7


def failures(world, n, work):
    def told():
        try:
            work()
        except CannotWriteError as error:
            x = torch.ones(1)
            dist.all_reduce(x)  # the group is still of use
            assert x.item() == n
            return str(error)

    return world(n, told)


BAD = {
    "shape": lambda: [Piece("x", (4,), Box((0,), (4,)), torch.zeros(3))],
    "outside": lambda: [Piece("x", (4,), Box((2,), (4,)), torch.zeros(4))],
    "dtype": lambda: [Piece("x", (4,), Box((0,), (4,)), torch.zeros(4, dtype=torch.complex64))],
    "raises": lambda: (1 / 0 for _ in range(1)),
    "hole": lambda: [Piece("y", (4,), Box((0,), (3,)), torch.zeros(3))],
    "overlap": lambda: [Piece("y", (4,), Box((i,), (3,)), torch.zeros(3)) for i in (0, 1)],
    "other shape": lambda: [Piece("weight/half", (8,), Box((7,), (1,)), torch.zeros(1).bfloat16())],
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("culprit", [0, 2])
def test_one_rank_fails_and_all_say_so(world, tmp_path, bad, culprit):
    def work():
        rank = dist.get_rank()
        mine = list(pieces_of(rank, 3, tensors()))
        more = BAD[bad]() if rank == culprit else []
        save(tmp_path, 7, (p for part in (mine, more) for p in part), STATE, dist.group.WORLD)

    told = failures(world, 3, work)
    assert told[0]
    assert told == [told[0]] * 3
    assert names(tmp_path) == []


def test_a_state_that_is_not_json(world, tmp_path):
    for state in ({"x": float("nan")}, {"x": (1, 2)}, {"x": 2**70}, {"x": {1}}):
        told = failures(world, 2, lambda state=state: save_as_rank(tmp_path, 7, state))
        assert told[0] == told[1]
        assert "cannot save" in told[0]
    assert names(tmp_path) == []


def test_a_full_disk(world, tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    def work():
        if dist.get_rank() == 1:
            monkeypatch.setattr("os.write", full)
        save_as_rank(tmp_path)

    told = failures(world, 2, work)
    assert told[0] == told[1]
    assert "rank 1" in told[0]
    assert "No space left" in told[0]
    assert names(tmp_path) == []


def test_too_little_space_is_seen_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(CannotWriteError, match="10 bytes are free"):
        save(tmp_path, 7, pieces_of(0, 1, tensors()), {}, None)


def test_a_root_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError, match="choose another folder"):
        save(tmp_path / "file", 7, [], {}, None)


@pytest.mark.parametrize(("point", "rank"), [("write_shard", 1), ("write_manifest", 0), ("commit", 0)])
def test_killed_on_the_way_the_previous_one_resumes(world, tmp_path, monkeypatch, point, rank):
    world(2, save_as_rank, tmp_path, 6)

    def dying():
        if dist.get_rank() == rank:
            monkeypatch.setattr(store, point, lambda *args: os._exit(9))
        save_as_rank(tmp_path, 7)

    with pytest.raises(RuntimeError, match=f"rank {rank}: died"):
        world(2, dying)
    assert any(".tmp-" in name for name in names(tmp_path))
    assert choose(tmp_path, "auto") == tmp_path / "step-00000006"
    world(2, save_as_rank, tmp_path, 7)
    assert choose(tmp_path, "auto") == tmp_path / "step-00000007"


def test_killed_after_the_rename_the_new_one_resumes(world, tmp_path, monkeypatch):
    def dying():
        settle = DiskFolder.settle
        monkeypatch.setattr(DiskFolder, "settle", lambda self: os._exit(9) if self._path == tmp_path else settle(self))
        save_as_rank(tmp_path, 7)

    with pytest.raises(RuntimeError, match="died"):
        world(1, dying)
    assert choose(tmp_path, "auto") == tmp_path / "step-00000007"
