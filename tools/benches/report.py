"""What a benchmark prints: a table, and one JSON object as the last line."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from benches.command_line import Options
from benches.machine import describe
from benches.timing import Figure


@dataclass(frozen=True)
class Row:
    """One comparison: a case, our figure and the best peer's (where there is one), how many times as fast we are, and
    whatever else is worth keeping."""

    case: str
    ours: Figure
    peer: Figure | None = None
    ratio: Figure | None = None
    peer_name: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """As it stands in the JSON object."""
        return {
            "case": self.case,
            "ours": self.ours.json(),
            "peer": None if self.peer is None else {"name": self.peer_name, **self.peer.json()},
            "ratio": None if self.ratio is None else self.ratio.json(),
            **self.more,
        }


def show(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Prints a table: the first column to the left, the others to the right."""
    columns = list(zip(heads, *lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    for line in (heads, ["-" * width for width in widths], *lines):
        first, *others = zip(line, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        print("  ".join(cells).rstrip())


def number(figure: Figure | None, digits: int = 3) -> str:
    """Median and range, as in 932 (901-950)."""
    if figure is None:
        return "-"
    middle, low, high = (significant(v, digits) for v in (figure.median, min(figure.values), max(figure.values)))
    return f"{middle} ({low}-{high})"


def significant(value: float, digits: int = 3) -> str:
    """A number without exponent and with at least so many digits that mean something."""
    size = f"{abs(value):e}"
    decimals = max(0, digits - 1 - int(size.partition("e")[2]))
    return f"{value:,.{decimals}f}"


def finish(options: Options, rows: Sequence[Row], headline: Row | None = None, **more: Any) -> None:
    """Prints the JSON object: `ours`, `peer` and `ratio` are those of the headline, or where the ratio is lowest."""
    compared = [row for row in rows if row.ratio is not None]
    first = min(compared, key=lambda row: row.ratio.median if row.ratio else 0.0) if compared else rows[0]
    first = headline or first
    told = {
        "bench": options.command,
        **first.json(),
        "rows": [row.json() for row in rows],
        "options": {k: v for k, v in vars(options).items() if k not in ("command", "install_peers", "peers_dir")},
        "machine": describe(options.threads),
        **more,
    }
    print(orjson.dumps(told).decode(), flush=True)
