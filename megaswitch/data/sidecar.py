"""`PREFIX.json`: what the `.bin` and `.idx` cannot say of themselves, above all which tokenizer made the ids."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import xxhash

from megaswitch.data.layout import json_path
from megaswitch.utils.errors import DataError, MissingInputError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
BLOCK_BYTES = 1 << 26
_CHUNK = 1 << 22


@dataclass(frozen=True)
class TokenizerFacts:
    """What a corpus remembers of its tokenizer."""

    fingerprint: str
    """xxh3-128 of the `.model` file, hexadecimal."""

    pieces: int
    """Pieces in the `.model`, sentinels not counted."""

    sentinels: int = 100

    @property
    def vocab_size(self) -> int:
        """All ids: pieces and sentinels; the first sentinel is the last id."""
        return self.pieces + self.sentinels


@dataclass(frozen=True)
class Sidecar:
    """The content of a `PREFIX.json`."""

    sequences: int
    documents: int
    tokens: int
    dtype: str
    tokenizer: TokenizerFacts | None = None
    sources: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    """xxh3-128 of the files, by their ending: `bin`, `idx`."""

    blocks: list[str] = field(default_factory=list)
    """xxh3-64 of each 64 MiB of the `.bin`, so that damage can be found and told by its place."""

    format_version: int = FORMAT_VERSION

    def to_bytes(self) -> bytes:
        """Indented JSON with sorted keys, so that equal corpora have equal sidecars."""
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def read_sidecar(prefix: str | Path) -> Sidecar | None:
    """The sidecar of a corpus; None, and a word in the log, where there is none. DataError where it cannot be
    understood."""
    path = json_path(prefix)
    try:
        content = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        logger.warning("%s is missing: counts, checksums and the tokenizer of this corpus cannot be compared", path)
        return None
    except (orjson.JSONDecodeError, OSError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); prepare the corpus again, or remove the file to do without"
        ) from None
    return _parse(path, content)


def _parse(path: Path, content: Any) -> Sidecar:
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version!r}, this program reads {FORMAT_VERSION}; prepare the corpus again, "
            f"or remove the "
            "file to do without"
        )
    try:
        tokenizer = content.pop("tokenizer", None)
        known = {name: content[name] for name in Sidecar.__dataclass_fields__ if name in content}
        sidecar = Sidecar(**known, tokenizer=None if tokenizer is None else TokenizerFacts(**tokenizer))
    except TypeError as error:
        raise DataError(f"{path} is not a corpus's description ({error}); prepare the corpus again") from None
    counts = [sidecar.sequences, sidecar.documents, sidecar.tokens]
    if sidecar.tokenizer is not None:
        counts += [sidecar.tokenizer.pieces, sidecar.tokenizer.sentinels]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise DataError(f"{path} holds counts that are no numbers; prepare the corpus again")
    return sidecar


class BlockDigest:
    """Checksums of a stream of bytes: of the whole and of every `BLOCK_BYTES` of it."""

    def __init__(self) -> None:
        self._whole = xxhash.xxh3_128()
        self._block = xxhash.xxh3_64()
        self._in_block = 0
        self._blocks: list[str] = []

    def update(self, content: bytes | memoryview) -> None:
        """The next bytes."""
        view = memoryview(content)
        self._whole.update(view)
        while len(view):
            piece, view = view[: BLOCK_BYTES - self._in_block], view[BLOCK_BYTES - self._in_block :]
            self._block.update(piece)
            self._in_block += len(piece)
            if self._in_block == BLOCK_BYTES:
                self._blocks.append(self._block.hexdigest())
                self._block, self._in_block = xxhash.xxh3_64(), 0

    def whole(self) -> str:
        """xxh3-128 of all bytes so far, hexadecimal."""
        return str(self._whole.hexdigest())

    def blocks(self) -> list[str]:
        """xxh3-64 of each block, hexadecimal; the last may be short."""
        return [*self._blocks, self._block.hexdigest()] if self._in_block else list(self._blocks)


def file_digest(path: Path, advance: Callable[[int], None] = lambda size: None) -> BlockDigest:
    """The checksums of a file; `advance` is told of each piece's size. MissingInputError where it is not there."""
    digest = BlockDigest()
    try:
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
                advance(len(piece))
    except FileNotFoundError:
        raise MissingInputError(f"{path} is missing") from None
    return digest
