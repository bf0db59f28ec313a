"""What is said of a compiled kernel, as a table and as JSON."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """A kernel for one GPU: `types` are those of its first tensors, `products` the instructions that multiply matrices,
    `spilled` and `shared` bytes."""

    arch: int
    operation: str
    kernel: str
    types: str
    warps: int
    registers: int
    shared: int
    spilled: int
    products: str


_TITLES = ("GPU", "operation", "kernel", "types", "warps", "registers", "shared memory", "spilled", "products")


def as_table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(_TITLES) + " |", "|---" * len(_TITLES) + "|"]
    for row in rows:
        cells = [f"sm_{row.arch}", *(str(cell) for cell in list(asdict(row).values())[1:])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_json(rows: Sequence[Row], path: Path) -> None:
    """A list of objects, written aside and renamed."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    os.replace(aside, path)
