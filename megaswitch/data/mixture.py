"""What users write for corpora: prefixes and tasks with weights or names, in a line or in a file, and weights by
temperature."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

from megaswitch.data.split import parse_weight
from megaswitch.data.tasks import PREFIX as TASK
from megaswitch.utils.errors import MissingInputError, UserError

_NAME = re.compile(r"([\w.-]+)=(.+)")
_GRAIN = 1 << 24
"""Temperature weights are whole numbers of about this sum: a share is off by less than a part in 30 million, and the
schedule's period is short enough to be walked in a second."""


@dataclass(frozen=True)
class Entry:
    """One corpus: where it is, its weight (None: not given) and the name of its curve ("" for none)."""

    source: str
    weight: Fraction | None = None
    name: str = ""

    @property
    def task(self) -> str | None:
        """The path of a task; None for a corpus."""
        return self.source.removeprefix(TASK) if self.source.startswith(TASK) else None


def parse_entries(text: str, key: str, *, temperature: float = 0.0) -> list[Entry]:
    """Entries of `P`, `0.7:P1,0.3:P2`, `P1,P2` (with a temperature) or `@FILE`; UserError naming `key` says what is
    wrong."""
    entries = [_parse_entry(entry, key) for entry in _split(text, key)]
    if not entries:
        raise UserError(f"{key} is empty: give the prefix of a corpus, or weights and prefixes as 0.7:P1,0.3:P2")
    weighted = [entry for entry in entries if entry.weight is not None]
    if temperature and weighted:
        raise UserError(f"{key} gives weights, and data.temperature={temperature:g} would too: leave one of them out")
    if any(entry.weight == 0 for entry in weighted):
        raise UserError(f"{key} is {text!r}: a weight of 0 takes nothing from its corpus; leave that corpus out")
    if len(entries) == 1 or temperature:
        return [Entry(entry.source, Fraction(1)) for entry in entries]
    if len(weighted) < len(entries):
        raise UserError(
            f"{key} is {text!r}: of several corpora each needs its weight, as in 0.7:P1,0.3:P2, or all go by size with "
            f"data.temperature"
        )
    return entries


def parse_sets(text: str, key: str) -> dict[str, str]:
    """Named sets of `en=P1,de=P2` (or of such lines in `@FILE`): the entries of each name, as `parse_entries` reads
    them.

    Without names there is one set, named "".
    """
    entries = _split(text, key)
    found = [_NAME.fullmatch(entry) for entry in entries]
    if not any(found):
        return {"": text}
    sets: dict[str, list[str]] = {}
    for match, entry in zip(found, entries, strict=True):
        if match is None:
            raise UserError(f"{key}: {entry!r} has no name, but others have: write en=P1,de=P2, or no name at all")
        sets.setdefault(match[1], []).append(match[2])
    # several prefixes of one name are passed over together, so that their weights say nothing
    return {name: ps[0] if len(ps) == 1 else ",".join(f"1:{p}" for p in ps) for name, ps in sets.items()}


def temperature_weights(sizes: list[int], temperature: float) -> list[Fraction]:
    """Weights in proportion to size^(1/T), each a whole number of 1 or more; the same on every machine."""
    with localcontext() as context:
        context.prec = 40
        shares = [Decimal(size) ** (1 / Decimal(repr(temperature))) for size in sizes]
        total = sum(shares, Decimal(0))
        return [Fraction(max(1, round(share / total * _GRAIN))) for share in shares]


def _split(text: str, key: str) -> list[str]:
    """Entries without the space around them, those of a file with its folder in front of their paths."""
    if not text.strip().startswith("@"):
        return [entry.strip() for entry in text.split(",")] if text.strip() else []
    path = Path(text.strip()[1:])
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MissingInputError(f"{key} names the list {path}, which cannot be read: {error}") from None
    lines = [line.partition("#")[0].strip() for line in lines]
    return [_placed(line, path.parent) for line in lines if line]


def _placed(line: str, folder: Path) -> str:
    """The line with its path, which is what stands behind the last `:` or `=` of ours, seen from `folder`."""
    name = _NAME.fullmatch(line)
    head, rest = (f"{name[1]}=", name[2]) if name else ("", line)
    first, colon, tail = rest.partition(":")
    if colon and re.fullmatch(r"[\d./+-]+", first):
        head, rest = f"{head}{first}:", tail.strip()
    if rest.startswith(TASK):
        head, rest = head + TASK, rest.removeprefix(TASK)
    return f"{head}{folder / rest}"


def _parse_entry(entry: str, key: str) -> Entry:
    head, colon, tail = entry.partition(":")
    try:
        weight = parse_weight(head, key) if colon else None
    except UserError:
        if any(letter.isdigit() for letter in head) or head.strip().lower() in ("nan", "inf", "-inf", ""):
            raise
        return Entry(entry)  # a colon inside a path, or a task
    source = tail.strip() if colon else head
    if not source:
        raise UserError(f"{key}: {entry!r} names no corpus; write a weight and a prefix, as in 0.7:P1")
    return Entry(source, weight)
