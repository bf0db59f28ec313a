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


def as_table(rows: Sequence[Row]) -> str:
    """Markdown: a line for a kernel and its types, numbers of the GPUs side by side, the greatest of all choices."""
    archs = sorted({row.arch for row in rows})
    titles = ["operation", "kernel", "types", "warps", "registers", "shared memory", "spilled", "products"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.operation, row.kernel, row.types), []).append(row)
    for key, group in groups.items():
        by_arch = [[row for row in group if row.arch == arch] for arch in archs]
        warps = ", ".join(str(n) for n in sorted({row.warps for row in group}))
        numbers = (_side_by_side(by_arch, name) for name in ("registers", "shared", "spilled"))
        products = " / ".join(dict.fromkeys(row.products for row in group))
        lines.append(f"| {' | '.join([*key, warps, *numbers, products])} |")
    return "\n".join(lines)


def _side_by_side(by_arch: Sequence[Sequence[Row]], name: str) -> str:
    most = [max((getattr(row, name) for row in rows), default=0) for rows in by_arch]
    return str(most[0]) if len(set(most)) == 1 else " / ".join(str(n) for n in most)


def write_json(rows: Sequence[Row], path: Path) -> None:
    """A list of objects, written aside and renamed."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    os.replace(aside, path)
