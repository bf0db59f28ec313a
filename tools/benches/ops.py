"""Each operation in all its implementations, and the best that libraries offer in its stead."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from benches.command_line import Options
from benches.models import DTYPES
from benches.operations.case import COMPILED, Case, Size
from benches.rates import Rates, measure_rates
from benches.report import Row, finish, number, show
from benches.timing import Contender, Figure, Taken, Work, best, clocked, in_turns, ratio
from megaswitch.data.prep.command import say
from megaswitch.ops.ops import Ops
from megaswitch.ops.registry import SOURCES, choose_ops, why_not
from megaswitch.utils.errors import UserError
from megaswitch.utils.malloc import keep_freed_memory

_FOLDER = Path(__file__).parent / "operations"
_LEAST = 0.02  # seconds of one measurement of an operation


def measure(options: Options) -> None:
    """Prints the time of forward and backward by implementation."""
    names = [path.stem for path in sorted(_FOLDER.glob("[a-z]*.py")) if path.stem != "case"]
    wanted = options.only or names
    if strange := sorted(set(wanted) - set(names)):
        raise UserError(f"there is no operation {', '.join(strange)}; choose of {', '.join(names)}")
    for backend in SOURCES:
        if reason := why_not(backend, "cpu"):
            say(f"ops.backend={backend} is left out: {reason}")
    keep_freed_memory()  # for all alike: what is measured are operations, and not the clearing of pages
    size, rows = Size(options.quick, DTYPES[options.dtype]), []
    rates = measure_rates(size.dtype, options.threads, quick=options.quick)
    for name in wanted:
        for case in import_module(f"benches.operations.{name}").cases(size):
            rows.append(_row(case, options, rates))
    heads = ["forward and backward", "ours", "by", "the best library's", "its name", "times as fast", "of the floor"]
    lines = [
        [r.case, number(r.ours), r.more["ours_name"], number(r.peer), r.peer_name, number(r.ratio), r.more["floor"]]
        for r in rows
    ]
    show(heads, lines)
    print("\nall implementations, median:")
    for row in rows:
        told = ", ".join(f"{name} {figure['value']:.3g}" for name, figure in row.more["all"].items())
        print(f"  {row.case} ({row.ours.unit}): {told}")
    if options.out:
        _draw(rows, Path(options.out) / f"ops_{options.dtype}.svg")
    finish(options, rows)


def _row(case: Case, options: Options, rates: Rates) -> Row:
    ours = {f"ours, {ops.name}": _many(case.ours(ops)) for ops in implementations(case.uses)}
    skip = options.quick or options.no_compile
    made = {n: make for n, make in {**case.libraries, **case.unequal}.items() if not (skip and n == COMPILED)}
    contenders = {**ours, **{name: _many(make()) for name, make in made.items()}}
    seconds = in_turns(contenders, 2 if options.quick else options.repeats, options.threads)
    mine = best({name: seconds[name] for name in ours})
    theirs = best({name: seconds[name] for name in made if name not in case.unequal})
    scale, unit = 1 / case.units, case.unit
    floor = case.flops / rates.flops + case.bytes / rates.bytes + case.updated / rates.updated
    more = {
        "ours_name": mine.removeprefix("ours, "),
        "floor": f"{floor / seconds[mine].median:.0%}" if floor else "-",
        "all": {name: figure.times(scale, unit).json() for name, figure in seconds.items()},
    }
    times = ratio(seconds[mine], seconds[theirs])
    return Row(case.name, seconds[mine].times(scale, unit), seconds[theirs].times(scale, unit), times, theirs, more)


def implementations(uses: Sequence[str]) -> list[Ops]:
    """The definition, and the backends that can run here and have a faster version of some of these operations."""
    found = [choose_ops(name, torch.device("cpu")) for name in SOURCES if not why_not(name, "cpu")]
    return [Ops(), *(ops for ops in found if set(uses) & set(ops.replaced()))]


def _many(work: Work) -> Contender:
    """Calls of something short until the clock can tell them; the time of one."""
    once = clocked(work)
    once()
    calls = max(1, round(_LEAST / max(once().cpu, 1e-6)))

    def all_of_them() -> None:
        for _ in range(calls):
            work()

    several = clocked(all_of_them)

    def averaged() -> Taken:
        taken = several()
        return Taken(taken.wall / calls, taken.cpu / calls)

    return averaged


def _draw(rows: list[Row], path: Path) -> None:
    from benches.plots import bars

    figures: dict[str, Figure | None] = {row.case: row.ratio for row in rows}
    values = [figure.median if figure else 0.0 for figure in figures.values()]
    bars(path, "ours beside the best library's", "times as fast", list(figures), {"forward and backward": values})
