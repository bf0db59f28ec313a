"""What was met while reading: counts by kind, and the first places, as `file:line:byte`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from megaswitch.data.prep.command import say
from megaswitch.data.prep.records import Slice

_SHOWN = 5


@dataclass
class Report:
    """What was met: counts by kind, the first places of what was bad in order of the input, and lines of each slice."""

    documents: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    places: list[tuple[int, int, int, str]] = field(default_factory=list)
    """Slice of the shard, line of the slice (from 1), byte of the file, kind."""
    lines: list[int] = field(default_factory=list)

    def note(self, kind: str, line: int, byte: int) -> None:
        """One record of this kind, in the slice that is being read."""
        self.kinds[kind] += 1
        if len(self.places) < _SHOWN:
            self.places.append((max(len(self.lines) - 1, 0), line, byte, kind))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "kinds": dict(sorted(self.kinds.items()))}

    @staticmethod
    def from_dict(content: dict[str, Any]) -> Report:
        """The reverse of `to_dict`."""
        places = [(int(a), int(b), int(c), str(kind)) for a, b, c, kind in content["places"]]
        return Report(int(content["documents"]), Counter(content["kinds"]), places, list(content["lines"]))


@dataclass
class Summary:
    """Reports of shards joined, places as a person reads them: `file:line:byte`."""

    documents: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)
    _lines: Counter[tuple[int, str]] = field(default_factory=Counter)

    def add(self, slices: tuple[Slice, ...], report: Report) -> None:
        """The report of the next shard in order."""
        self.documents += report.documents
        self.kinds.update(report.kinds)
        for number, part in enumerate(slices[: len(report.lines)]):
            before = self._lines[0, part.source.address] if part.start else 0
            for index, line, byte, kind in report.places:
                if index == number and len(self.places) < _SHOWN:
                    self.places.append(f"{place(part, before + line, byte)}: {kind}")
            self._lines[0, part.source.address] = before + report.lines[number]

    def say(self) -> None:
        """Prints counts and places, if there is anything to print."""
        for kind, count in sorted(self.kinds.items()):
            say(f"{count} of kind: {kind}")
        for text in self.places:
            say(f"  {text}")


def place(part: Slice, line: int, byte: int) -> str:
    """`file:line:byte`, or the row of a table."""
    if part.source.format == "parquet":
        return f"{part.source.address}:row {line}"
    return f"{part.source.address}:{line}:{byte}"
