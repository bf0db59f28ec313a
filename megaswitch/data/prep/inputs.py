"""Finds the files of an input: paths, folders, globs, fsspec addresses, `-` for standard input; and says of each how it
is packed and what it holds. Reads no content.
"""

from __future__ import annotations

import glob
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import PurePosixPath
from typing import Any

from megaswitch.utils.errors import MissingInputError, UserError

STDIN = "-"
FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text", ".parquet": "parquet"}
"""What a file holds, by its ending."""
PACKINGS = {".gz": "gz", ".zst": "zst", ".xz": "xz"}
"""How it is compressed, by the ending behind that."""

_STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created")
"""What remote systems call that which changes with a file."""


@dataclass(frozen=True)
class Source:
    """One file, or standard input."""

    address: str
    size: int
    """Bytes as stored; 0 where not known."""

    stamp: str
    """Changes when the file does (time of modification, or what the remote system has for it)."""

    format: str
    """`jsonl`, `text` or `parquet`."""

    packing: str = ""
    """`gz`, `zst`, `xz` or empty."""

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.address.rsplit("/", 1)[-1]


def is_remote(address: str) -> bool:
    """Whether fsspec has to open it."""
    return "://" in address


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it; UserError where a package for it is missing."""
    try:
        return tuple(import_module("fsspec").core.url_to_fs(address))  # type: ignore[return-value]
    except (ImportError, ValueError) as error:
        raise UserError(f"{address} cannot be opened: {error}; install the fsspec package for such addresses") from None


def find(inputs: Sequence[str], chosen: str = "") -> list[Source]:
    """The files of all inputs, in the order given and by name within a folder or glob.

    `chosen` is the format of files whose ending does not say it. MissingInputError where an input holds no file,
    UserError for a file of no known format.
    """
    sources = [source for item in inputs for source in _find(item, chosen)]
    if sum(source.address == STDIN for source in sources) > 1:
        raise UserError("standard input (-) can be read once only")
    return sources


def _find(item: str, chosen: str) -> list[Source]:
    if item == STDIN:
        if chosen not in ("jsonl", "text"):
            raise UserError("what comes on standard input (-) has no name: say --format jsonl or --format text")
        return [Source(STDIN, 0, uuid.uuid4().hex, chosen)]
    names, searched = _remote_names(item) if is_remote(item) else _local_names(item)
    found = [_source(name, chosen, searched) for name in names]
    sources = [source for source in found if source is not None]
    if not sources:
        raise MissingInputError(f"the input {item} is missing" if not names else f"{item} holds no file of text")
    return sources


def _local_names(item: str) -> tuple[list[str], bool]:
    """Files, and whether they were searched for rather than named."""
    if os.path.isdir(item):
        return sorted(_walk(item)), True
    if os.path.lexists(item) or not glob.has_magic(item):
        return ([item] if os.path.exists(item) else []), False
    return sorted(name for name in glob.glob(item, recursive=True) if os.path.isfile(name)), True


def _walk(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(place, name) for name in files if not name.startswith("."))


def _remote_names(item: str) -> tuple[list[str], bool]:
    system, path = file_system(item)
    try:
        if glob.has_magic(path):
            return sorted(system.unstrip_protocol(name) for name in system.glob(path)), True
        if system.isdir(path):
            return sorted(system.unstrip_protocol(name) for name in system.find(path)), True
        return ([item] if system.exists(path) else []), False
    except OSError as error:
        raise MissingInputError(f"{item} cannot be listed: {error}") from None


def _source(address: str, chosen: str, searched: bool) -> Source | None:
    """None for a file of another kind that a search came upon."""
    ending = PurePosixPath(address).suffix
    packing = PACKINGS.get(ending, "")
    inner = PurePosixPath(address.removesuffix(ending)).suffix if packing else ending
    kind = FORMATS.get(inner) or chosen
    if not kind or (searched and FORMATS.get(inner) is None):
        if searched:
            return None
        raise UserError(
            f"the input {address} ends in none of {', '.join(FORMATS)} (and {', '.join(PACKINGS)} behind these); say "
            "what it holds with --format, or rename it"
        )
    if kind == "parquet" and packing:
        raise UserError(f"{address}: a parquet file is packed inside; unpack or rename it")
    size, stamp = _facts(address)
    return Source(address, size, stamp, kind, packing)


def _facts(address: str) -> tuple[int, str]:
    if is_remote(address):
        system, path = file_system(address)
        info = system.info(path)
        return int(info.get("size") or 0), next((str(info[key]) for key in _STAMPS if key in info), "")
    facts = os.stat(address)
    return facts.st_size, str(facts.st_mtime_ns)
