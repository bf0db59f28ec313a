"""Turns files of text into documents: jsonl with one object a line, or plain text with one document a line.

What is wrong with a line is decided here, counted by kind, and remembered by place; what to do about it is the caller's
policy.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import orjson

from megaswitch.data.prep.command import say
from megaswitch.data.tokenizer import repair
from megaswitch.utils.errors import DataError, MissingInputError, UserError

OnBad = Literal["refuse", "skip", "replace"]
"""refuse: stop at the first bad line. skip: leave bad lines out. replace: put U+FFFD for bad characters, leave out the
rest."""

JSON_ENDINGS = (".jsonl", ".ndjson")
TEXT_ENDINGS = (".txt",)
EMPTY = "empty document"
_SHOWN = 5
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Chunk:
    """Whole lines of one file, about a MiB of them."""

    path: Path
    first_line: int
    content: bytes

    @property
    def is_json(self) -> bool:
        """Whether lines are JSON objects."""
        return self.path.suffix in JSON_ENDINGS


@dataclass
class Report:
    """What was met: counts by kind and the first places, in order of the input."""

    documents: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)

    def note(self, kind: str, place: str) -> None:
        """One line of this kind at this place."""
        self.kinds[kind] += 1
        if len(self.places) < _SHOWN:
            self.places.append(f"{place}: {kind}")

    def add(self, later: Report) -> None:
        """Joins the report of lines that come after this report's."""
        self.documents += later.documents
        self.kinds.update(later.kinds)
        self.places = (self.places + later.places)[:_SHOWN]

    def say(self) -> None:
        """Prints counts and places, if there is anything to print."""
        for kind, count in sorted(self.kinds.items()):
            say(f"{count} of kind: {kind}")
        for place in self.places:
            say(f"  {place}")


class BadLineError(Exception):
    """A line that holds no usable document. `text` is its repaired text, where repair is possible."""

    def __init__(self, kind: str, text: str | None = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.text = text


def check_inputs(paths: Sequence[Path]) -> int:
    """Total size in bytes; MissingInputError or UserError for the first file that cannot be an input."""
    total = 0
    for path in paths:
        if not path.is_file():
            raise MissingInputError(f"the input {path} is missing")
        if path.suffix not in JSON_ENDINGS + TEXT_ENDINGS:
            raise UserError(
                f"the input {path} is neither {', '.join(JSON_ENDINGS)} (a JSON object a line) nor "
                f"{', '.join(TEXT_ENDINGS)} (a "
                "document a line); unpack or rename it"
            )
        total += path.stat().st_size
    return total


def read_lines(paths: Sequence[Path], size: int = _CHUNK_BYTES) -> Iterator[Chunk]:
    """Chunks of whole lines of all files, in order; a line longer than `size` is a chunk of its own."""
    check_inputs(paths)
    for path in paths:
        line = 1
        with path.open("rb") as file:
            while content := file.read(size):
                content += file.readline() if not content.endswith(b"\n") else b""
                if line == 1:
                    content = content.removeprefix(codecs.BOM_UTF8)
                yield Chunk(path, line, content)
                line += content.count(b"\n")


def read_texts(chunk: Chunk, key: str, on_bad: OnBad, report: Report) -> Iterator[str]:
    """The documents of a chunk, noting in `report` what was left out or repaired; DataError under `refuse`."""
    parse = parse_json if chunk.is_json else parse_text
    lines = chunk.content.split(b"\n")
    if not lines[-1]:
        lines.pop()  # the end of the last line, not a line
    for number, line in enumerate(lines, chunk.first_line):
        place = f"{chunk.path}:{number}"
        try:
            text = parse(line, key) if line.strip() else ""
        except BadLineError as bad:
            report.note(bad.kind, place)
            if on_bad == "refuse":
                _refuse(place, bad.kind)
            if on_bad == "skip" or bad.text is None:
                continue
            text = bad.text
        if text.strip():
            report.documents += 1
            yield text
        else:
            report.note(EMPTY, place)


def parse_text(line: bytes, key: str = "") -> str:
    """A line of plain text as a document."""
    try:
        return line.rstrip(b"\r").decode("utf-8")
    except UnicodeDecodeError:
        raise BadLineError("invalid UTF-8", line.rstrip(b"\r").decode("utf-8", "replace")) from None


def parse_json(line: bytes, key: str) -> str:
    """The text of a JSON line; BadLineError says what is wrong with it."""
    try:
        return _text_of(orjson.loads(line), key)
    except orjson.JSONDecodeError:
        pass
    try:
        decoded = line.decode("utf-8")
    except UnicodeDecodeError:
        text = _text_of(_lenient(line.decode("utf-8", "replace")), key)
        raise BadLineError("invalid UTF-8", repair(text)) from None
    # orjson also refuses lone surrogates, which the standard library reads.
    text = _text_of(_lenient(decoded), key)
    repaired = repair(text)
    if repaired is not text:
        raise BadLineError("lone surrogate", repaired)
    return text


def _text_of(record: object, key: str) -> str:
    if not isinstance(record, dict):
        raise BadLineError("not a JSON object")
    if key not in record:
        raise BadLineError(f"no field {key!r}")
    text = record[key]
    if not isinstance(text, str):
        raise BadLineError(f"field {key!r} is not a string")
    return text


def _lenient(line: str) -> object:
    try:
        return json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadLineError("bad JSON") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse(place: str, kind: str) -> NoReturn:
    raise DataError(f"{place}: {kind}; mend the line, or choose --on-bad skip or --on-bad replace")
