"""Nothing damaged, hostile or mixed up is ever read; the run falls back, or says what is wrong."""

import random
import shutil

import orjson
import pytest
import torch
import torch.distributed as dist
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from megaswitch.checkpoint.choose import choose, committed, describe
from megaswitch.checkpoint.format import Piece
from megaswitch.checkpoint.manifest import decode
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.store import save
from megaswitch.params.boxes import Box
from megaswitch.utils.errors import DataError, MissingInputError

SHARD = "shard-00000.safetensors"


def write(root, step, value=1.0):
    x = torch.full((4, 3), value + step)
    pieces = [Piece("w", (4, 3), Box((0, 0), (4, 3)), x), Piece("n", (), Box((), ()), torch.tensor(step))]
    return save(root, step, pieces, {"step": step}, None)


@pytest.fixture
def root(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    return tmp_path


def sealed(inner):
    """Manifest bytes with a right checksum over whatever is inside."""
    body = inner if isinstance(inner, bytes) else orjson.dumps(inner)
    return b'{"checksum":"xxh3-128:' + xxhash.xxh3_128(body).hexdigest().encode() + b'","manifest":' + body + b"}\n"


def inner_of(folder):
    return orjson.loads((folder / "manifest.json").read_bytes())["manifest"]


DAMAGES = {
    "empty shard": lambda p: (p / SHARD).write_bytes(b""),
    "half a shard": lambda p: (p / SHARD).write_bytes((p / SHARD).read_bytes()[:50]),
    "a byte short": lambda p: (p / SHARD).write_bytes((p / SHARD).read_bytes()[:-1]),
    "a byte more": lambda p: (p / SHARD).write_bytes((p / SHARD).read_bytes() + b"\0"),
    "missing shard": lambda p: (p / SHARD).unlink(),
    "shard of another step": lambda p: shutil.copy(p.parent / "step-00000001" / SHARD, p / SHARD),
    "extra shard": lambda p: shutil.copy(p / SHARD, p / "shard-00001.safetensors"),
    "linked shard": lambda p: ((p / SHARD).rename(p / "moved"), (p / SHARD).symlink_to(p / "moved")),
    "no manifest": lambda p: (p / "manifest.json").unlink(),
    "empty manifest": lambda p: (p / "manifest.json").write_bytes(b""),
    "half a manifest": lambda p: (p / "manifest.json").write_bytes((p / "manifest.json").read_bytes()[:-40]),
    "manifest is a folder": lambda p: ((p / "manifest.json").unlink(), (p / "manifest.json").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_run_falls_back_and_says_so(root, caplog, damage):
    DAMAGES[damage](root / "step-00000003")
    assert choose(root, "auto") == root / "step-00000002"
    assert "step-00000003 cannot be used" in caplog.text
    with pytest.raises(DataError, match=r"step-00000003") as caught:
        choose(root, str(root / "step-00000003"))
    assert caught.value.exit_code == 65


def test_every_flipped_bit_is_noticed(root):
    folder, rng = root / "step-00000003", random.Random(0)
    for name in (SHARD, "manifest.json"):
        good = (folder / name).read_bytes()
        for _ in range(100):
            bad = bytearray(good)
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            (folder / name).write_bytes(bad)
            with pytest.raises(DataError):
                Reader(folder)
        (folder / name).write_bytes(good)
    assert Reader(folder).step == 3


def test_sizes_are_checked_without_hashes(root):
    DAMAGES["a byte short"](root / "step-00000003")
    with pytest.raises(DataError, match="bytes and should have"):
        Reader(root / "step-00000003", verify=False)


@given(st.binary(max_size=400))
def test_any_bytes_are_no_manifest(data):
    with pytest.raises(DataError, match=r"^here: "):
        decode(data, "here")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


def paths(tree, prefix=()):
    yield prefix
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from paths(value, (*prefix, key))


GOOD = {
    "format": 1,
    "step": 3,
    "state": {"samples": 1},
    "files": [{"name": SHARD, "size": 100, "hash": "xxh3-128:" + "0" * 32}],
    "tensors": {"w": {"dtype": "float32", "shape": [4, 3], "slices": [[0, "k", [0, 0], [4, 3]]]}},
}


@settings(max_examples=300)
@given(st.data())
def test_any_part_replaced_by_anything_is_an_error_or_harmless(data):
    inner = orjson.loads(orjson.dumps(GOOD))
    path = data.draw(st.sampled_from([p for p in paths(GOOD) if p]))
    junk = data.draw(JSON)
    target = inner
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = junk
    try:
        manifest = decode(sealed(inner), "here")
    except DataError as bad:
        assert str(bad).startswith("here: ")
    else:
        assert all(n < 100 for info in manifest.tensors.values() for n in info.shape)


HOSTILE = {
    "checksum is wrong": sealed(GOOD).replace(b'"step":3', b'"step":4'),
    "not JSON": sealed(b"[" * 100_000 + b"]" * 100_000),
    "no object": sealed([1]),
    "format 2": sealed({**GOOD, "format": 2}),
    "files is missing": sealed({k: v for k, v in GOOD.items() if k != "files"}),
    "no name of a shard": sealed({**GOOD, "files": [{**GOOD["files"][0], "name": "../" + SHARD}]}),
    "size of": sealed({**GOOD, "files": [{**GOOD["files"][0], "size": -1}]}),
    "no valid hash": sealed({**GOOD, "files": [{**GOOD["files"][0], "hash": ""}]}),
    "listed twice": sealed({**GOOD, "files": GOOD["files"] * 2}),
    "more than its size": sealed(
        {**GOOD, "tensors": {"w": {"dtype": "uint8", "shape": [2**40], "slices": [[0, "k", [0], [2**40]]]}}}
    ),
    "of 12 elements": sealed({**GOOD, "tensors": {"w": {**GOOD["tensors"]["w"], "slices": []}}}),
    "overlap": sealed({**GOOD, "tensors": {"w": {**GOOD["tensors"]["w"], "slices": [[0, "k", [0, 0], [4, 3]]] * 2}}}),
    "not listed": sealed({**GOOD, "tensors": {"w": {**GOOD["tensors"]["w"], "slices": [[1, "k", [0, 0], [4, 3]]]}}}),
    "no list of numbers": sealed({**GOOD, "tensors": {"w": {"dtype": "uint8", "shape": [1] * 99, "slices": []}}}),
    "no sensible number": sealed({**GOOD, "tensors": {"w": {"dtype": "uint8", "shape": [2**63], "slices": []}}}),
    "unknown dtype": sealed({**GOOD, "tensors": {"w": {"dtype": "object", "shape": [], "slices": []}}}),
}


@pytest.mark.parametrize("told", HOSTILE)
def test_hostile_manifests(told):
    with pytest.raises(DataError, match=told):
        decode(HOSTILE[told], "here")


def test_a_huge_manifest_is_not_read(root):
    with open(root / "step-00000003" / "manifest.json", "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="more than it can have"):
        Reader(root / "step-00000003")


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "int32"},
        {"slices": [[0, "other", [0, 0], [4, 3]]]},
        {"shape": [2, 3], "slices": [[0, "w@0,0", [0, 0], [2, 3]]]},
    ],
)
def test_a_manifest_and_a_shard_that_disagree(root, change):
    folder = root / "step-00000003"
    inner = inner_of(folder)
    inner["tensors"]["w"].update(change)
    (folder / "manifest.json").write_bytes(sealed(inner))
    with pytest.raises(DataError, match=SHARD):
        Reader(folder).read_all("w")


def test_what_there_is_to_choose_from(root, tmp_path, caplog):
    assert choose(root, "auto") == root / "step-00000003"
    assert choose(root, "none") is None
    assert choose(root, str(root / "step-00000001")) == root / "step-00000001"
    assert choose(root / "nowhere", "auto") is None
    assert caplog.text == ""
    with pytest.raises(MissingInputError, match="nowhere"):
        choose(root, str(root / "nowhere"))


def test_when_all_are_bad_it_is_an_error_that_names_them(root, caplog):
    for folder in committed(root):
        DAMAGES["empty manifest"](folder)
    with pytest.raises(DataError, match="none of the 3 checkpoints") as caught:
        choose(root, "auto")
    for part in ("step-00000001", "step-00000002", "step-00000003", "checkpoint.resume=none", "new run.dir"):
        assert part in str(caught.value)
    assert choose(root, "none") is None


def test_other_names_are_no_checkpoints(root):
    write(root, 9).rename(root / ("step-00000009.tmp-" + "0" * 32))
    for name in ("step-9", "step-00000010x", "latest", "step-0000000012"):
        (root / name).mkdir()
    assert [path.name for path in committed(root)] == ["step-00000003", "step-00000002", "step-00000001"]


def test_ranks_agree_on_one(world, root):
    DAMAGES["a byte short"](root / "step-00000003")

    def work():
        return choose(root, "auto", dist.group.WORLD)

    assert world(3, work) == [root / "step-00000002"] * 3


def test_damage_that_one_rank_finds_is_known_to_all(world, tmp_path):
    def store():
        rank = dist.get_rank()
        save(tmp_path, 4, [Piece("x", (2,), Box((rank,), (1,)), torch.ones(1))], {}, dist.group.WORLD)

    world(2, store)
    write(tmp_path, 2)
    shard = tmp_path / "step-00000004" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")

    def both():
        found = choose(tmp_path, "auto", dist.group.WORLD)
        try:
            choose(tmp_path, str(tmp_path / "step-00000004"), dist.group.WORLD)
        except DataError as bad:
            return found, str(bad)

    (first, second) = world(2, both)
    assert first == second
    assert first[0] == tmp_path / "step-00000002"
    assert "shard-00001.safetensors: its bytes are damaged" in first[1]


def test_describe(root):
    text = describe(root / "step-00000003")
    for part in ("step 3", '"step": 3', "1 files", "w  float32  [4, 3]", "n  int64  []", SHARD):
        assert part in text
