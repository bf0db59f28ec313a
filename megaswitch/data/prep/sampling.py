"""Chooses the lines that a vocabulary is trained on: a fixed random choice, and of each language its share.

Of many languages each may be given the share that a temperature says, as mT5 does: p ~ n^(1/T), where n is the lines of
the language. Small languages are then repeated, large ones thinned out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megaswitch.data.prep.command import say
from megaswitch.data.prep.documents import Reader, Reading
from megaswitch.data.prep.inputs import Source
from megaswitch.data.prep.records import Slice
from megaswitch.data.prep.report import Report, Summary
from megaswitch.data.rng import bounded, derive

_SAMPLE_KEY = derive(0x73656E74)  # "sent": which sentences --max-sentences keeps


def sentences(texts: Iterable[str], limit: int) -> list[str]:
    """Non-empty lines of the texts, at most `limit`: a uniform choice (reservoir sampling) that depends on the texts
    alone."""
    kept: list[str] = []
    for number, line in enumerate(_lines(texts)):
        _sample(kept, line, number, limit)
    return kept


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.splitlines():
            clean = line.strip().replace("\0", "")
            if clean:
                yield clean


def quotas(counts: dict[str, int], temperature: float, limit: int) -> dict[str, int]:
    """Lines of each language: together the smaller of `limit` and all there are, in proportion n^(1/T), each at least
    one."""
    weights = {name: count ** (1 / temperature) for name, count in counts.items() if count}
    total, room = sum(weights.values()), min(limit, sum(counts.values()))
    return {name: max(1, round(room * weight / total)) for name, weight in weights.items()}


def repeated(lines: list[str], count: int) -> list[str]:
    """`count` lines: as many whole rounds as fit, and the first of one more."""
    whole, rest = divmod(count, len(lines))
    return lines * whole + lines[:rest]


@dataclass(frozen=True)
class Languages:
    """How the texts of an input fall into languages."""

    temperature: float = 1.0
    """1 takes texts as they come; mT5's is 1 / 0.3."""

    field: str = ""
    """The field that names a document's language; empty: each item of `--input` is a language of its own."""


def _labelled(
    groups: Sequence[list[Source]], reading: Reading, field: str, summary: Summary
) -> Iterator[tuple[str, str]]:
    """Label and text of every document; the label is its field, or the number of its group."""
    for number, sources in enumerate(groups):
        for source in sources:
            report, part = Report(), Slice(source)
            for texts, labels in Reader(reading, report, field).labelled(part):
                yield from zip(labels if field else [str(number)] * len(texts), texts, strict=True)
            summary.add((part,), report)


def choose_lines(
    groups: Sequence[list[Source]], reading: Reading, languages: Languages, limit: int, summary: Summary
) -> list[str]:
    """The lines to train on. With a temperature the input is read twice: to count, and to choose."""
    if languages.temperature == 1:
        return sentences((text for _, text in _labelled(groups, reading, "", summary)), limit)
    counts: Counter[str] = Counter()
    for label, text in _labelled(groups, reading, languages.field, Summary()):
        counts[label] += sum(1 for _ in _lines([text]))
    wanted = quotas(counts, languages.temperature, limit)
    kept: dict[str, list[str]] = {name: [] for name in sorted(wanted)}
    seen: Counter[str] = Counter()
    for label, text in _labelled(groups, reading, languages.field, summary):
        for line in _lines([text]):
            _sample(kept[label], line, seen[label], min(wanted[label], counts[label]))
            seen[label] += 1
    shown = ", ".join(f"{name or 'without a label'} {counts[name]} to {wanted[name]}" for name in kept)
    say(f"lines of each language, there and taken: {shown}")
    return [line for name, lines in kept.items() for line in repeated(lines, wanted[name])]


def _sample(kept: list[str], line: str, number: int, limit: int) -> None:
    """One step of reservoir sampling: the line of this number is kept, or takes another's place, or goes."""
    if number < limit:
        kept.append(line)
        return
    place = int(bounded(_SAMPLE_KEY, np.array([number], np.uint64), np.array([number + 1], np.uint64))[0])
    if place < limit:
        kept[place] = line
