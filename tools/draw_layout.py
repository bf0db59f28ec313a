"""Draws how the ranks of a run are arranged: a row for each pipeline rank, with the dense and the expert view."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints
from xml.sax.saxutils import escape

from megaswitch.data.prep.command import Parser, positive, run
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.grid import Grid, make_grid
from megaswitch.topology.placement import stage_of
from megaswitch.utils.errors import UserError

MOST_ROWS, MOST_COLUMNS = 8, 16
CELL_WIDTH, CELL_HEIGHT, GAP = 124, 58, 10
LEFT, TOP, ROW_HEIGHT, MARGIN = 150, 64, 160, 20
COLOURS = ("#cfe2f3", "#fce5cd", "#d9ead3", "#ead1dc", "#fff2cc", "#d0e0e3", "#f4cccc", "#d9d2e9")
INK, FAINT = "#222222", "#777777"


def text(x: float, y: float, words: str, size: int = 12, colour: str = INK, **more: str) -> str:
    """A centred line of text, unless `anchor` says otherwise."""
    weight = f' font-weight="{more["weight"]}"' if "weight" in more else ""
    anchor = more.get("anchor", "middle")
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}>'
        f"{escape(words)}</text>"
    )


def column_x(column: int) -> float:
    """Left edge of a column of ranks."""
    return LEFT + column * (CELL_WIDTH + GAP)


def row_y(row: int) -> float:
    """Upper edge of a pipeline rank's cells."""
    return TOP + row * ROW_HEIGHT + 30


def cell(grid: Grid, rank: int) -> Iterator[str]:
    """One rank: its place on every axis; the colour is its share of the experts."""
    plane = grid.dp * grid.tp
    x, y = column_x(rank % plane), row_y(grid.index(rank, "pp"))
    fill = COLOURS[grid.index(rank, "ep") % len(COLOURS)]
    yield f'<rect x="{x:g}" y="{y:g}" width="{CELL_WIDTH}" height="{CELL_HEIGHT}" rx="4" fill="{fill}" stroke="{INK}"/>'
    yield text(x + CELL_WIDTH / 2, y + 19, f"rank {rank}", 14, weight="bold")
    yield text(x + CELL_WIDTH / 2, y + 35, f"dp {grid.index(rank, 'dp')}, tp {grid.index(rank, 'tp')}")
    experts = f"edp {grid.index(rank, 'edp')}, ep {grid.index(rank, 'ep')}"
    yield text(x + CELL_WIDTH / 2, y + 50, experts + (f", etp {grid.index(rank, 'etp')}" if grid.etp > 1 else ""))


def bracket(row: int, first: int, count: int, words: str, *, above: bool) -> Iterator[str]:
    """A bracket over or under `count` columns from `first` on."""
    left, right = column_x(first), column_x(first + count - 1) + CELL_WIDTH
    y = row_y(row) - 6 if above else row_y(row) + CELL_HEIGHT + 6
    end = y + 5 if above else y - 5
    points = f"{left:g},{end:g} {left:g},{y:g} {right:g},{y:g} {right:g},{end:g}"
    yield f'<polyline points="{points}" fill="none" stroke="{FAINT}"/>'
    yield text((left + right) / 2, y - 5 if above else y + 14, words, 11, FAINT)


def stages(layout: LayoutConfig, row: int) -> str:
    """Which pipeline stages a rank of this row holds."""
    chunks = range(layout.num_chunks)
    numbers = [str(stage_of(layout.v_placement, layout.pp, row, chunk)) for chunk in chunks]
    return ("stages " if len(numbers) > 1 else "stage ") + ", ".join(numbers)


def pipeline_row(grid: Grid, layout: LayoutConfig, row: int) -> Iterator[str]:
    """All that belongs to one pipeline rank."""
    plane, together = grid.dp * grid.tp, grid.ep * grid.etp
    yield text(MARGIN, row_y(row) + 24, f"pp {row}", 14, weight="bold", anchor="start")
    yield text(MARGIN, row_y(row) + 42, stages(layout, row), anchor="start")
    for dp in range(grid.dp):
        yield from bracket(row, dp * grid.tp, grid.tp, f"dp {dp}: dense layers", above=True)
    for edp in range(grid.edp):
        yield from bracket(row, edp * together, together, f"edp {edp}: all experts", above=False)
    for rank in range(row * plane, (row + 1) * plane):
        yield from cell(grid, rank)


def arrow(grid: Grid, rank: int) -> str:
    """From a rank to the next of its pipeline."""
    x = column_x(rank % (grid.dp * grid.tp)) + CELL_WIDTH / 2
    row = grid.index(rank, "pp")
    above, below = row_y(row) + CELL_HEIGHT + 26, row_y(row + 1) - 26
    return f'<line x1="{x:g}" y1="{above:g}" x2="{x:g}" y2="{below:g}" stroke="{FAINT}" marker-end="url(#head)"/>'


def notes(grid: Grid) -> list[str]:
    """What the picture means, below it."""
    return [
        "Above: each bracket is one copy of the row's dense layers, cut over its tp ranks; copies split the batch.",
        f"Below: each bracket is one copy of the row's experts, 1/{grid.ep} in each colour; its ranks exchange tokens.",
        "Arrows: activations go down the pipeline, gradients come back.",
    ]


def picture(layout: LayoutConfig, world: int) -> str:
    """The SVG of a layout; UserError when it is impossible or too large to be read."""
    grid = make_grid(layout, world)
    plane = grid.dp * grid.tp
    if grid.pp > MOST_ROWS or plane > MOST_COLUMNS:
        raise UserError(
            f"{grid.pp} rows of {plane} ranks cannot be read; draw at most {MOST_ROWS} rows (--pp) of {MOST_COLUMNS} "
            "ranks (--world divided by --pp), for instance the same axes in a smaller world"
        )
    said = f"{world} ranks: pp {grid.pp} x dp {grid.dp} x tp {grid.tp}; "
    said += f"experts: edp {grid.edp} x ep {grid.ep} x etp {grid.etp}"
    remarks = notes(grid)
    width = max(column_x(plane) + MARGIN, LEFT + 560)
    height = row_y(grid.pp) + 18 * len(remarks) - 40
    body = [text(MARGIN, 32, said, 16, weight="bold", anchor="start")]
    for row in range(grid.pp):
        body += pipeline_row(grid, layout, row)
    body += [arrow(grid, rank) for rank in range(world - plane)]
    body += [text(MARGIN, row_y(grid.pp) - 40 + 18 * i, line, anchor="start") for i, line in enumerate(remarks)]
    head = '<path d="M0,0 L8,4 L0,8 z" fill="' + FAINT + '"/>'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif">',
            f"<title>{escape(said)}</title>",
            '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
            f"{head}</marker></defs>",
            f'<rect width="{width:g}" height="{height:g}" fill="white"/>',
            *body,
            "</svg>\n",
        ]
    )


def main() -> int:
    """The command; returns the exit code."""
    example = "python tools/draw_layout.py --pp 2 --tp 2 --ep 2 --world 8 --out layout.svg"
    parser = Parser(__doc__ or "", example)
    for axis in ("pp", "tp", "ep", "etp"):
        parser.add_argument(f"--{axis}", type=positive, default=1, help=f"as layout.{axis} (default: 1)")
    parser.add_argument("--chunks", type=positive, help="as layout.chunks (default: 2 when pp > 1)")
    kinds = get_args(get_type_hints(LayoutConfig)["schedule"])
    parser.add_argument("--schedule", choices=kinds, default="1f1b", help="as layout.schedule (default: 1f1b)")
    parser.add_argument("--world", type=positive, required=True, metavar="N", help="number of processes")
    parser.add_argument("--out", type=Path, required=True, metavar="F.svg")
    args = parser.parse_args()

    def work() -> None:
        sizes = {axis: getattr(args, axis) for axis in ("pp", "tp", "ep", "etp")}
        layout = LayoutConfig(**sizes, chunks=args.chunks, schedule=args.schedule)
        args.out.write_text(picture(layout, args.world), encoding="utf-8")

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
