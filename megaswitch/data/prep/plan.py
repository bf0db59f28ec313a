"""Cuts inputs into shards, the units of work and of going on after a stop.

The plan depends on the inputs and options alone, never on the machines, so the corpus made by it does not either. A
shard is a run of whole small files, or a slice of a large one; packed files and standard input cannot be sliced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
import xxhash

from megaswitch.data.prep.documents import Reading
from megaswitch.data.prep.inputs import STDIN, Source
from megaswitch.data.prep.records import Slice, open_table
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.data.writer import write_files
from megaswitch.utils.errors import DataError, MissingInputError

_SMALLEST, _LARGEST, _SHARDS = 4 << 20, 512 << 20, 256
_VERSION = 1


@dataclass(frozen=True)
class Encoding:
    """How documents become ids."""

    model: str
    """Path of the `.model`."""

    fingerprint: str
    sentences: bool = False
    """Whether each sentence is a sequence of its own."""


@dataclass(frozen=True)
class Shard:
    """Slices that one worker turns into one corpus."""

    number: int
    slices: tuple[Slice, ...]

    @property
    def size(self) -> int:
        """Bytes of the inputs, as stored; of tables, some measure of their rows."""
        return sum((part.stop or part.source.size) - part.start for part in self.slices)


@dataclass(frozen=True)
class Plan:
    """All that the workers have to know."""

    output: str
    reading: Reading
    encoding: Encoding
    shards: tuple[Shard, ...]

    @property
    def folder(self) -> Path:
        """Where shards are kept until the corpus is whole."""
        return Path(f"{self.output}.parts")

    def prefix(self, number: int) -> str:
        """The prefix of a shard's own corpus."""
        return str(self.folder / f"part-{number:06d}")

    def digest(self, number: int) -> str:
        """What identifies a shard: its slices of files as they are, and every option that changes its bytes."""
        # The path of the model does not count: its fingerprint does.
        what = [asdict(self.shards[number])["slices"], asdict(self.reading), self.encoding.fingerprint]
        return str(xxhash.xxh3_128_hexdigest(orjson.dumps([_VERSION, *what, self.encoding.sentences])))

    @property
    def reads_stdin(self) -> bool:
        """Whether the input can be read in this process alone, and once."""
        return any(part.source.address == STDIN for shard in self.shards for part in shard.slices)

    def save(self) -> Path:
        """Writes the plan into its folder for workers elsewhere."""
        path = self.folder / "plan.json"
        write_files({path: orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2)})
        return path


def tokenizer_of(path: str) -> Tokenizer:
    """The tokenizer, read once for all workers that are forked later, and again where the file has changed."""
    try:
        facts = os.stat(path)
    except OSError:
        return Tokenizer(path)  # which says what is wrong
    return _tokenizer(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=1)
def _tokenizer(path: str, changed: int, size: int) -> Tokenizer:
    return Tokenizer(path)


def make_plan(sources: Sequence[Source], reading: Reading, model: str, output: str, sentences: bool = False) -> Plan:
    """Cuts the sources into shards of about equal size; MissingInputError or DataError for the tokenizer."""
    encoding = Encoding(model, tokenizer_of(model).fingerprint, sentences)
    size = min(max(sum(source.size for source in sources) // _SHARDS, _SMALLEST), _LARGEST)
    groups: list[list[Slice]] = []
    room = 0
    for part in (part for source in sources for part in _slices(source, reading, size)):
        if not groups or part.source.size > size or room < part.source.size or part.source.address == STDIN:
            groups.append([])
            room = size
        groups[-1].append(part)
        room -= part.source.size
    return Plan(output, reading, encoding, tuple(Shard(i, tuple(group)) for i, group in enumerate(groups)))


def _slices(source: Source, reading: Reading, size: int) -> Iterator[Slice]:
    whole = source.packing or source.size <= size or (source.format == "text" and reading.unit == "file")
    if whole:
        yield Slice(source)
    elif source.format == "parquet":
        groups = int(open_table(source).num_row_groups)
        step = max(1, round(groups * size / source.size))
        yield from (Slice(source, first, min(first + step, groups)) for first in range(0, groups, step))
    else:
        parts = -(-source.size // size)
        cuts = [source.size * i // parts for i in range(parts)]
        yield from (Slice(source, *cut) for cut in zip(cuts, [*cuts[1:], None], strict=True))


def load_plan(folder: str | Path) -> Plan:
    """The plan in a folder; MissingInputError or DataError."""
    path = Path(folder) / "plan.json"
    try:
        content = orjson.loads(path.read_bytes())
        return _parse(content)
    except OSError as error:
        raise MissingInputError(f"no plan at {path}: {error.strerror}") from None
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no plan of preprocess.py ({error}); remove the folder and begin again") from None


def _parse(content: dict[str, Any]) -> Plan:
    reading = Reading(**{**content["reading"], "where": tuple(content["reading"]["where"])})
    shards = tuple(
        Shard(
            shard["number"],
            tuple(Slice(Source(**part["source"]), part["start"], part["stop"]) for part in shard["slices"]),
        )
        for shard in content["shards"]
    )
    return Plan(content["output"], reading, Encoding(**content["encoding"]), shards)
