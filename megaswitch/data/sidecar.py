"""`PREFIX.json`: what the `.bin` and `.idx` cannot say of themselves, above all which tokenizer made the ids."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import xxhash

from megaswitch.data.layout import json_path
from megaswitch.utils.errors import DataError, MissingInputError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
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


def file_checksum(path: Path) -> str:
    """xxh3-128 of a file, hexadecimal; MissingInputError where it is not there."""
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except FileNotFoundError:
        raise MissingInputError(f"{path} is missing") from None
    return str(digest.hexdigest())
