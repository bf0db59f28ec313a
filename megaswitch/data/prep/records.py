"""Cuts what inputs hold into records: the lines of a file, its paragraphs, the whole of it, or the rows of a table.

A slice of a file takes the records that begin in it, so that slices of any length hold each record once. A record
longer than the limit is passed over without ever being in memory, and stands as None.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import IO, Any

from megaswitch.data.prep.inputs import Source, file_system, is_remote
from megaswitch.data.prep.unpack import open_source
from megaswitch.utils.errors import DataError, UserError

Record = bytes | dict[str, Any] | None

_READ = 1 << 20
_ROWS = 512


@dataclass(frozen=True)
class Slice:
    """Part of a source: from byte `start` to before `stop`, or to the end where that is None; for a table, its groups
    of rows by number."""

    source: Source
    start: int = 0
    stop: int | None = None


@dataclass
class Block:
    """Some records of a slice, in order, and where they stand: `line` counts from 1 at the slice's first line."""

    records: list[Record]
    line: int
    byte: int
    starts: list[tuple[int, int]] | None = None
    """Line and byte of each record where they do not follow from the records."""
    lines: int = 0
    """Lines that the block takes up."""

    def place(self, number: int) -> tuple[int, int]:
        """Line and byte at which a record begins."""
        if self.starts is not None:
            return self.starts[number]
        before = sum(len(record) + 1 for record in self.records[:number] if isinstance(record, bytes))
        return self.line + number, self.byte + before


def read_records(part: Slice, unit: str, limit: int, columns: list[str] | None = None) -> Iterator[Block]:
    """The records of a slice in blocks of about a MiB.

    `unit` is `line`, `paragraph` or `file` and matters for plain text; `limit` is the length of a record in bytes;
    `columns` are those of a table that are wanted.
    """
    if part.source.format == "parquet":
        yield from _rows(part, limit, columns)
        return
    with open_source(part.source) as stream:
        if part.source.format == "jsonl" or unit == "line":
            yield from _lines(stream, part.start, part.stop, limit)
        elif unit == "paragraph":
            yield from _paragraphs(stream, part.start, part.stop, limit)
        else:
            yield _whole(stream, limit)


def _lines(stream: IO[bytes], start: int, stop: int | None, limit: int) -> Iterator[Block]:
    position, line = _align(stream, start), 1
    if stop is not None and position >= stop:
        return
    for content, size in _whole_lines(stream, limit):
        if content is None:
            yield Block([None], line, position, lines=1)
            position, line = position + size, line + 1
        else:
            skip = len(codecs.BOM_UTF8) if position == 0 and content.startswith(codecs.BOM_UTF8) else 0
            end = size
            if stop is not None and position + size >= stop:
                end = content.find(b"\n", max(stop - 1 - position, 0)) + 1 or size
            records = _split(content[skip:end])
            yield Block(records, line, position + skip, lines=len(records))
            position, line = position + end, line + len(records)
        if stop is not None and position >= stop:
            return


def _split(content: bytes) -> list[Record]:
    records: list[Record] = list(content.split(b"\n"))
    if not records[-1]:
        records.pop()  # the end of the last line, not a line
    return records


def _align(stream: IO[bytes], start: int) -> int:
    """Moves to the first line that begins at `start` or behind it; returns where that is."""
    if start == 0:
        return 0
    stream.seek(start - 1)
    position = start - 1
    while block := stream.read(_READ):
        end = block.find(b"\n") + 1
        if end:
            stream.seek(position + end)
            return position + end
        position += len(block)
    return position


def _whole_lines(stream: IO[bytes], limit: int) -> Iterator[tuple[bytes | None, int]]:
    """Runs of whole lines, each run with its length in bytes; None for a line that is longer than `limit`."""
    pending: list[bytes] = []
    held = 0
    while block := stream.read(_READ):
        first = block.find(b"\n") + 1
        if not first:
            pending.append(block)
            held += len(block)
            if held > limit:
                pending.clear()
            continue
        if held > limit:
            yield None, held + first
            block = block[first:]
            pending, held = [], 0
        end = block.rfind(b"\n") + 1
        if end:
            content = b"".join([*pending, block[:end]])
            yield content, len(content)
            pending, held = [], 0
        pending.append(block[end:])
        held += len(block) - end
    if held:
        yield None if held > limit else b"".join(pending), held


@dataclass
class _Gathered:
    """Paragraphs of a block, and the one that is still open."""

    limit: int
    records: list[Record] = field(default_factory=list)
    starts: list[tuple[int, int]] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, record: Record, line: int, byte: int) -> None:
        """The next line of the open paragraph, or the first of a new one."""
        if not self.size:
            self.starts.append((line, byte))
        self.size += len(record) + 1 if isinstance(record, bytes) else self.limit + 2
        if isinstance(record, bytes) and self.size <= self.limit + 1:
            self.lines.append(record)
        else:
            self.lines.clear()

    def close(self) -> None:
        """The paragraph ends."""
        if self.size:
            self.records.append(b"\n".join(self.lines) if self.size <= self.limit + 1 else None)
        self.lines, self.size = [], 0

    def take(self, lines: int) -> Block:
        """The paragraphs that have ended; an open one stays."""
        closed = len(self.records)
        block = Block(self.records, 0, 0, self.starts[:closed], lines)
        self.records, self.starts = [], self.starts[closed:]
        return block


def _paragraphs(stream: IO[bytes], start: int, stop: int | None, limit: int) -> Iterator[Block]:
    """Runs of lines with something on them. A slice begins behind its first blank line, and ends with the first one
    that begins at `stop` or behind it; its lines are counted up to `stop`."""
    gathered, skipping = _Gathered(limit), start > 0
    for block in _lines(stream, start, None, limit):
        byte, lines = block.byte, 0
        for number, record in enumerate(block.records):
            blank = isinstance(record, bytes) and not record.strip()
            lines += stop is None or byte < stop
            if blank:
                gathered.close()
                skipping = False
                if stop is not None and byte >= stop:
                    yield gathered.take(lines)
                    return
            elif not skipping:
                gathered.add(record, block.line + number, byte)
            byte += len(record) + 1 if isinstance(record, bytes) else 0
        yield gathered.take(lines)
    gathered.close()
    yield gathered.take(0)


def _whole(stream: IO[bytes], limit: int) -> Block:
    pieces, size = [], 0
    while size <= limit and (piece := stream.read(_READ)):
        pieces.append(piece)
        size += len(piece)
    content = b"".join(pieces).removeprefix(codecs.BOM_UTF8)
    return Block([content if size <= limit else None], 1, 0, lines=content.count(b"\n") + 1)


def open_table(source: Source) -> Any:
    """A parquet file; UserError where pyarrow is missing, DataError where the file is none."""
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(f"{source.address}: parquet needs pyarrow; pip install 'megaswitch[data]'") from None
    system, path = file_system(source.address) if is_remote(source.address) else (None, source.address)
    try:
        return parquet.ParquetFile(path if system is None else system.open(path, "rb"), memory_map=system is None)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise DataError(f"{source.address} is no sound parquet file: {error}") from None


def _rows(part: Slice, limit: int, columns: list[str] | None) -> Iterator[Block]:
    table = open_table(part.source)
    groups = range(part.start, table.num_row_groups if part.stop is None else part.stop)
    known = [name for name in table.schema_arrow.names if columns is None or name in columns]
    row = 1
    try:
        for batch in table.iter_batches(_ROWS, row_groups=list(groups), columns=known, use_threads=False):
            records: list[Record] = [_short(record, limit) for record in batch.to_pylist()]
            places = [(row + number, 0) for number in range(len(records))]
            yield Block(records, row, 0, places, lines=len(records))
            row += len(records)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{part.source.address}: row {row} or behind it cannot be read: {error}") from None


def _short(record: dict[str, Any], limit: int) -> Record:
    long = any(isinstance(value, str) and len(value) > limit for value in record.values())
    return None if long else record
