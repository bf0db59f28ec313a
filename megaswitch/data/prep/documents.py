"""Turns records into documents: JSON objects, lines of text, rows; checks and selects them.

What is wrong with a record is decided here, counted by kind, and remembered by place; what to do about it is the
caller's policy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import orjson
import xxhash

from megaswitch.data.prep.conditions import conditions, field_of
from megaswitch.data.prep.records import Block, Record, Slice, read_records
from megaswitch.data.prep.report import Report, place
from megaswitch.data.prep.unpack import open_source
from megaswitch.data.tokenizer import repair
from megaswitch.utils.errors import DataError

OnBad = Literal["refuse", "skip", "replace"]
"""refuse: stop at the first bad record. skip: leave bad records out. replace: put U+FFFD for bad characters, leave out
the rest."""

EMPTY = "empty document"
BYTES = "invalid UTF-8"
SURROGATE = "lone surrogate"
LEFT_OUT = "left out by --where"
SHORT = "shorter than --min-chars"
LONG = "longer than --max-chars"
REPEATED = "repeated within its shard"
LARGEST = 1 << 27


@dataclass(frozen=True)
class Reading:
    """How inputs become documents; a part of what identifies a shard."""

    key: str = "text"
    """Field of a JSON object, or column of a table, that holds the text; dots go into objects."""

    unit: str = "line"
    """What is a document in plain text: `line`, `paragraph` or `file`."""

    where: tuple[str, ...] = ()
    """Conditions on other fields, all of which must hold: `lang=de,fr`, `score>=0.5`, `licence!=unknown`."""

    on_bad: OnBad = "refuse"
    on_empty: Literal["skip", "refuse"] = "skip"
    max_bytes: int = LARGEST
    """Longest record in bytes; a longer one is bad, and is never held in memory."""

    min_chars: int = 0
    max_chars: int = 0
    """Longest document in characters; 0 for no limit."""

    dedup: bool = False
    """Leave out documents that the same shard held before."""

    def columns(self) -> list[str]:
        """The fields that are looked at, without what is behind their first dot."""
        names = [self.key, *(condition.field for condition in conditions(self.where))]
        return list(dict.fromkeys(name.split(".")[0] for name in names))


class BadRecordError(Exception):
    """A record that holds no usable document. `text` is its repaired text, where repair is possible."""

    def __init__(self, kind: str, text: str | None = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.text = text


class Reader:
    """Reads slices by one policy. Repetitions are known across all slices that one reader has read."""

    def __init__(self, reading: Reading, report: Report, label: str = "") -> None:
        """`label`: a field to be read beside the text."""
        self.reading, self.report, self.label = reading, report, label
        self._conditions = conditions(reading.where)
        self._columns = [*reading.columns(), *([label.split(".")[0]] if label else [])]
        self._selects = bool(reading.min_chars or reading.max_chars or reading.dedup)
        self._seen: set[int] = set()

    def texts(self, part: Slice) -> Iterator[list[str]]:
        """The documents of a slice, a block at a time; DataError for what is refused."""
        return (texts for texts, _ in self.labelled(part))

    def labelled(self, part: Slice) -> Iterator[tuple[list[str], list[str]]]:
        """Documents and their labels, empty where they have none."""
        self.report.lines.append(0)
        for block in read_records(part, self.reading.unit, self.reading.max_bytes, self._columns):
            texts: list[str] = []
            labels: list[str] = []
            for number, record in enumerate(block.records):
                try:
                    text = self._text(record, part.source.format)
                except BadRecordError as bad:
                    text = self._repaired(bad, part, block, number)
                if text is None or (self._selects and not self._is_selected(text)):
                    continue
                if not text or text.isspace():
                    self._note_empty(part, block, number)
                    continue
                texts.append(text)
                labels.append(self._label_of(record) if self.label else "")
            self.report.documents += len(texts)
            self.report.lines[-1] += block.lines
            yield texts, labels

    def _text(self, record: Record, kind: str) -> str | None:
        """The text of a record, empty for a blank one, None for one that is not selected; BadRecordError."""
        if record is None or (isinstance(record, bytes) and len(record) > self.reading.max_bytes):
            raise BadRecordError(f"longer than {self.reading.max_bytes} bytes")
        if not isinstance(record, bytes):
            content, flaw = record, ""
        elif record.isspace() or not record:
            return ""
        elif kind == "text":
            return parse_text(record)
        else:
            content, flaw = parse_json(record)
        for condition in self._conditions:
            if not condition.holds(content):
                self.report.kinds[LEFT_OUT] += 1
                return None
        text = text_of(content, self.reading.key)
        if flaw:
            repaired = repair(text)
            if flaw == BYTES or repaired is not text:
                raise BadRecordError(flaw, repaired)
        return text

    def _repaired(self, bad: BadRecordError, part: Slice, block: Block, number: int) -> str | None:
        line, byte = block.place(number)
        self.report.note(bad.kind, line, byte)
        if self.reading.on_bad == "refuse":
            _refuse(part, line, byte, bad.kind, "mend it, or choose --on-bad skip or --on-bad replace")
        return None if self.reading.on_bad == "skip" else bad.text

    def _note_empty(self, part: Slice, block: Block, number: int) -> None:
        line, byte = block.place(number)
        self.report.note(EMPTY, line, byte)
        if self.reading.on_empty == "refuse":
            _refuse(part, line, byte, EMPTY, "remove it, or choose --on-empty skip")

    def _is_selected(self, text: str) -> bool:
        reading, kind = self.reading, ""
        if text.isspace():
            return True  # counted as empty
        if len(text) < reading.min_chars:
            kind = SHORT
        elif reading.max_chars and len(text) > reading.max_chars:
            kind = LONG
        elif reading.dedup:
            digest = xxhash.xxh3_64_intdigest(text.encode())
            kind = REPEATED if digest in self._seen else ""
            self._seen.add(digest)
        if kind:
            self.report.kinds[kind] += 1
        return not kind

    def _label_of(self, record: Record) -> str:
        content = parse_json(record)[0] if isinstance(record, bytes) else record or {}
        return str(field_of(content, self.label) or "")


def parse_text(record: bytes) -> str:
    """A record of plain text as a document."""
    try:
        return record.rstrip(b"\r").decode("utf-8")
    except UnicodeDecodeError:
        raise BadRecordError(BYTES, record.rstrip(b"\r").decode("utf-8", "replace")) from None


def parse_json(line: bytes) -> tuple[dict[str, Any], str]:
    """The object of a JSON line, and what may be wrong with its texts; BadRecordError where it is none."""
    flaw = ""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record, flaw = _lenient(line)
    if not isinstance(record, dict):
        raise BadRecordError("not a JSON object")
    return record, flaw


def text_of(record: dict[str, Any], key: str) -> str:
    """The text of an object; BadRecordError where it has none."""
    text = record[key] if key in record else field_of(record, key)
    if not isinstance(text, str):
        missing = text is None and key not in record
        raise BadRecordError(f"no field {key!r}" if missing else f"field {key!r} is not a string")
    return text


def _lenient(line: bytes) -> tuple[object, str]:
    # orjson refuses invalid UTF-8 and lone surrogates anywhere in the line, perhaps in a field that nobody wants.
    try:
        decoded, flaw = line.decode("utf-8"), SURROGATE
    except UnicodeDecodeError:
        decoded, flaw = line.decode("utf-8", "replace"), BYTES
    try:
        return json.loads(decoded, parse_constant=_no_constant), flaw
    except (ValueError, RecursionError):
        raise BadRecordError("bad JSON") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse(part: Slice, line: int, byte: int, kind: str, remedy: str) -> NoReturn:
    raise DataError(f"{place(part, _lines_before(part) + line, byte)}: {kind}; {remedy}")


def _lines_before(part: Slice) -> int:
    if not part.start or part.source.format == "parquet":
        return 0
    with open_source(part.source) as stream:
        left, lines = part.start, 0
        while left > 0 and (piece := stream.read(min(left, 1 << 20))):
            lines += piece.count(b"\n")
            left -= len(piece)
        begins = not left and piece.endswith(b"\n")
    return lines + (not begins)
