"""Damage at random, and the readers that must stand it: an error of ours or a right answer, nothing else."""

import random
import re
import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import orjson
import torch
import xxhash

from megaswitch.checkpoint.manifest import decode
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.shard_reader import read_box, read_header
from megaswitch.config.documents import from_dict, read_file, to_dict, to_toml
from megaswitch.config.errors import raise_if_any
from megaswitch.params.boxes import Box
from megaswitch.train.config import RunConfig
from megaswitch.utils.errors import UserError

SECONDS = 30
"""What takes longer hangs."""
NUMBER = re.compile(rb"-?\d+(\.\d+)?")
HOSTILE = [b"-1", b"0", b"1", b"255", b"1e308", b"1e999", b"-0.0", b"NaN", b"null", b"true", b'""', b"[]", b"{}", b"[["]
HOSTILE += [str(n).encode() for n in (2**31, 2**32 - 1, 2**40, 2**62 - 1, 2**63, 2**64 - 1, 2**64, 10**400)]
WORDS = [b'"', b"\\", b"\\u0000", b"\\ud800", b"../", b"/etc/passwd", b"\0", b"\xff", b",", b"[" * 99, b"]"]
WORDS += [b"shard-00001", b"__metadata__", b"F64", b"BF16", b"bool", b"float64", b"object", b"dtype", b"shape"]
WORDS += [b"=", b"\n", b"[a]\n"]


def mutate(rng: random.Random, data: bytes) -> bytes:
    """The bytes with one to four damages."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.randint(1, 1 << rng.randint(0, 8)))
        kind = rng.randrange(9)
        if kind == 0 and data:
            bit = rng.randrange(8 * len(data))
            data = data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
        elif kind == 1:
            data = data[:at] + data[end:]
        elif kind == 2:
            data = data[:at] + data[at:end] + data[at:]
        elif kind == 3:
            data = data[:at]
        elif kind == 4:
            data = data[:at] + rng.randbytes(end - at) + data[end:]
        elif kind == 5:
            data = data[:at] + rng.choice(WORDS) + data[at:]
        elif numbers := list(NUMBER.finditer(data)):  # the most telling damage: other numbers
            one = rng.choice(numbers)
            number = rng.choice(HOSTILE) if kind < 8 else rng.choice(numbers).group()
            data = data[: one.start()] + number + data[one.end() :]
    return data


class Memory:
    """Bytes as a `Source`."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def read_into(self, offset: int, out: np.ndarray) -> None:
        assert 0 <= offset <= offset + out.size <= self.size, "nothing beyond the end is asked for"
        out[...] = np.frombuffer(self.data, np.uint8, out.size, offset)


SLICES = [[0, "k", [0, 0], [2, 3]], [1, "l", [2, 0], [2, 3]]]
INNER = {
    "format": 1,
    "step": 3,
    "state": {"samples": 12, "config": {"model": {"d_ff": 8}}, "data": "ä"},
    "files": [{"name": f"shard-{i:05d}.safetensors", "size": 200, "hash": "xxh3-128:" + "0" * 32} for i in range(2)],
    "tensors": {
        "weight/a": {"dtype": "float32", "shape": [4, 3], "slices": SLICES},
        "n": {"dtype": "int64", "shape": [], "slices": [[1, "m", [], []]]},
    },
}


def seal(body: bytes) -> bytes:
    """A manifest with the right checksum over whatever is inside."""
    return b'{"checksum":"xxh3-128:' + xxhash.xxh3_128(body).hexdigest().encode() + b'","manifest":' + body + b"}\n"


def shard(header: bytes, length: int | None = None) -> bytes:
    """A file of this header and 60 bytes of data."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(range(60))


HEADER = orjson.dumps(
    {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F64", "shape": [2, 2], "data_offsets": [0, 32]},
        "b": {"dtype": "BF16", "shape": [3, 2], "data_offsets": [32, 44]},
        "c": {"dtype": "U8", "shape": [], "data_offsets": [44, 45]},
    }
)


def attack_manifest(rng: random.Random, folder: Path) -> None:
    body = orjson.dumps(INNER)
    data = mutate(rng, seal(body)) if rng.random() < 0.1 else seal(mutate(rng, body))
    found = decode(data, "here")
    for info in found.tensors.values():
        size = torch.Size(info.shape).numel() * info.dtype.itemsize
        assert size <= sum(f.size for f in found.files.values()), "a tensor is larger than its files"
    assert all("/" not in name and ".." not in name for name in found.files)


def attack_header(rng: random.Random, folder: Path) -> None:
    kind = rng.randrange(3)
    if kind == 0:
        data = mutate(rng, shard(HEADER))
    else:
        data = shard(mutate(rng, HEADER), None if kind == 1 else rng.getrandbits(rng.randint(1, 64)))
    source = Memory(data)
    for stored in read_header(source, "here").values():
        out = torch.empty(stored.shape, dtype=stored.dtype)
        assert out.numel() * out.element_size() <= source.size
        read_box(source, stored, Box((0,) * out.dim(), stored.shape), out)


TOML = to_toml(RunConfig()).encode()
STATE = orjson.dumps(to_dict(RunConfig()))


def attack_config(rng: random.Random, folder: Path) -> None:
    if rng.random() < 0.5:
        (folder / "config.toml").write_bytes(mutate(rng, TOML))
        _, problems = read_file(RunConfig, str(folder / "config.toml"))
        raise_if_any(problems)
        return
    try:
        data = orjson.loads(mutate(rng, STATE))
    except orjson.JSONDecodeError:
        return
    from_dict(RunConfig, data, "here", complete=False)


def attack_folder(rng: random.Random, folder: Path) -> None:
    """A whole checkpoint, whose checksums are right again after the damage."""
    data = shard(mutate(rng, HEADER)) if rng.random() < 0.5 else mutate(rng, shard(HEADER))
    told = {"name": "shard-00000.safetensors", "size": len(data)}
    told["hash"] = f"xxh3-128:{xxhash.xxh3_128(data).hexdigest()}"
    slices = {"a": ("float64", [2, 2]), "b": ("bfloat16", [3, 2]), "c": ("uint8", [])}
    tensors = {n: {"dtype": d, "shape": s, "slices": [[0, n, [0] * len(s), s]]} for n, (d, s) in slices.items()}
    body = orjson.dumps({"format": 1, "step": 1, "state": {}, "files": [told], "tensors": tensors})
    (folder / "shard-00000.safetensors").write_bytes(data)
    (folder / "manifest.json").write_bytes(seal(mutate(rng, body) if rng.random() < 0.5 else body))
    reader = Reader(folder)
    for name in reader.tensors:
        reader.read_all(name)


@dataclass(frozen=True)
class Target:
    """A reader under attack, and how often the long suite attacks it."""

    attack: Callable[[random.Random, Path], None]
    times: int


TARGETS = {
    "manifest": Target(attack_manifest, 400_000),
    "header": Target(attack_header, 400_000),
    "config": Target(attack_config, 200_000),
    "folder": Target(attack_folder, 100_000),
}


def attack(name: str, rng: random.Random, folder: Path) -> bool:
    """One attack; whether it was refused. Raises whatever is no error of ours."""
    try:
        TARGETS[name].attack(rng, folder)
    except UserError as error:
        assert len(str(error)) < 1_000_000
        return True
    return False


@contextmanager
def no_hang():
    """Has whatever runs in the block fail when it is not done in time."""

    def hangs(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"hangs: no answer in {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
