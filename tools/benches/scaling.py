"""Several processes beside one with as many threads, what they send, and how a step grows with the model."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from benches.command_line import Options
from benches.crew import Crew, Round, crew
from benches.floors import needs
from benches.models import DTYPES, Ours, batches_of, refuse_too_large, run_config, switch_model
from benches.rates import measure_rates
from benches.report import Row, finish, number, show, significant
from benches.timing import Figure, clocked, in_turns, ratio
from benches.wire import Bytes, formula, watched_step
from megaswitch.model.config import STACKS, ModelConfig
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.start import Place
from megaswitch.topology.topology import own_groups
from megaswitch.train.config import RunConfig
from megaswitch.train.step import train_step
from megaswitch.train.system import build

MODES = ("tp", "pp", "ep", "dp")
GROWTH = ("experts", "length", "layers")


def measure(options: Options) -> None:
    """Prints efficiency and bytes, then growth."""
    chosen = options.only or [*MODES, *GROWTH]
    modes = [mode for mode in MODES if mode in chosen]
    rows = [row for procs in _processes(options) for row in _beside_one(options, modes, procs)] if modes else []
    if rows:
        _tell_modes(rows)
        if options.out:
            _draw_modes(Path(options.out), rows)
    for kind in [kind for kind in GROWTH if kind in chosen]:  # uses threads, so only after processes were forked
        rows += _grown(options, kind)
    finish(options, rows)


def _processes(options: Options) -> list[int]:
    return [2] if options.quick else options.procs


def _layout(options: Options, mode: str, procs: int) -> RunConfig:
    """Whole micro-batches for tp; a share for each rank of dp and ep; some for every stage of pp."""
    config = run_config(switch_model(options, 8 if options.quick else options.experts), options)
    batch = max(config.train.global_batch, 2 * procs)
    micro = {"tp": batch, "pp": max(1, batch // (2 * procs)), "ep": batch // procs, "dp": batch // procs}
    layout = LayoutConfig(**({} if mode == "dp" else {mode: procs}))
    return replace(config, layout=layout, train=replace(config.train, global_batch=batch, micro_batch=micro[mode]))


def _rounds(config: RunConfig, place: Place) -> Round:
    """A step a round; the first one is watched."""
    with own_groups():  # each axis counted for itself, even where two have the same ranks
        system, steps = build(config, place), count()
    batches = batches_of(system)

    def first() -> Any:
        train_step(system, batches, next(steps))
        return watched_step(system, batches, next(steps))

    rounds: Iterator[Any] = iter([first])

    def once() -> Any:
        act = next(rounds, None)
        return act() if act else train_step(system, batches, next(steps)).lr

    return once


def _beside_one(options: Options, modes: list[str], procs: int) -> list[Row]:
    """All modes and one process of `procs` threads take turns."""
    with ExitStack() as stack:
        configs = {mode: _layout(options, mode, procs) for mode in modes}
        one = replace(configs[modes[0]], layout=LayoutConfig())
        one = replace(one, train=replace(one.train, micro_batch=one.train.global_batch))
        crews = {"one": stack.enter_context(crew(1, lambda place: _rounds(one, place), threads=procs))}
        for mode, config in configs.items():
            crews[mode] = stack.enter_context(crew(procs, lambda place, config=config: _rounds(config, place)))
        sent = {name: _counted(members) for name, members in crews.items()}
        repeats = 2 if options.quick else options.repeats
        seconds = in_turns({name: members.once for name, members in crews.items()}, repeats, threads=0)
    size, rows = DTYPES[options.dtype].itemsize, []
    for mode, config in configs.items():
        record, moved = sent[mode]
        told = {"mode": mode, "procs": procs, **_told(moved, formula(config, procs, record, size))}
        name, one_process = f"one process, {procs} threads", seconds["one"]
        rows.append(Row(f"{mode} {procs}", seconds[mode], one_process, ratio(seconds[mode], one_process), name, told))
    return rows


def _counted(members: Crew) -> tuple[Any, Bytes]:
    """The record of the first round, and the bytes of all processes."""
    members.once()
    moved: Bytes = Counter()
    for _, of_rank in members.results:
        moved.update(of_rank)
    return members.results[0][0], moved


def _told(moved: Bytes, expected: Bytes) -> dict[str, Any]:
    of_formula = sum(moved[key] for key in expected)
    return {
        "megabytes": sum(moved.values()) / 1e6,
        "by_formula": {f"{axis} {op}": expected[axis, op] for axis, op in expected},
        "counted": {f"{axis} {op}": moved[axis, op] for axis, op in moved},
        "counted_over_formula": of_formula / sum(expected.values()) if expected else 1.0,
        "share_in_formula": of_formula / sum(moved.values()) if moved else 1.0,
    }


def _tell_modes(rows: list[Row]) -> None:
    lines = [
        [
            row.case, number(row.ours), number(row.peer), number(row.ratio), significant(row.more["megabytes"]),
            f"{row.more['counted_over_formula']:.4f}", f"{row.more['share_in_formula']:.1%}",
        ]
        for row in rows
    ]
    print("MB: bytes that all processes put into collectives; x: over the closed formula; in it: their share of all")
    show(["processes", "s a step", "s, as many threads", "efficiency", "MB", "x", "in it"], lines)


def _draw_modes(folder: Path, rows: list[Row]) -> None:
    from benches.plots import bars

    efficiency = [row.ratio.median for row in rows if row.ratio]
    title = "processes of one thread beside one with as many"
    bars(folder / "scaling.svg", title, "times as fast", [row.case for row in rows], {"efficiency": efficiency})


def _points(options: Options, kind: str) -> list[tuple[int, RunConfig]]:
    """Configurations that differ in one number."""
    few = {"experts": [2, 4], "length": [16, 32], "layers": [2, 4]}
    many = {"experts": [8, 16, 32, 64, 128], "length": [128, 256, 512, 1024], "layers": [2, 4, 8, 16]}
    return [(n, run_config(_of(options, kind, n), options)) for n in (few if options.quick else many)[kind]]


def _of(options: Options, kind: str, n: int) -> ModelConfig:
    """The model with `n` of something; the decoder's length and the slots keep their proportion."""
    experts = 4 if options.quick else options.experts
    if kind == "experts":
        return switch_model(options, n)
    if kind == "layers":
        sparse = {f"num_sparse_{stack}_layers": n // 2 for stack in STACKS}
        return replace(switch_model(options, experts), num_encoder_layers=n, num_decoder_layers=n, **sparse)
    decoder, slots = max(4, n * 114 // 512), max(4, round(1.25 * n / experts))
    return replace(switch_model(options, experts), encoder_length=n, decoder_length=decoder, fixed_capacity=slots)


def _grown(options: Options, kind: str) -> list[Row]:
    """Seconds by size, beside those of the first size times the growth of what has to be computed and moved."""
    repeats = 2 if options.quick else options.repeats
    rates = measure_rates(DTYPES[options.dtype], options.threads, quick=options.quick)
    rows: list[Row] = []
    unit = 0.0
    for n, config in _points(options, kind):
        refuse_too_large([config.model])
        ours = Ours(config)
        record = ours.step().record
        seconds = in_turns({"step": clocked(ours.step)}, repeats, options.threads)["step"]
        floor = sum(need.seconds(rates) for need in needs(config, record, DTYPES[options.dtype].itemsize).values())
        unit = unit or seconds.median / floor
        expected = Figure(tuple(unit * floor for _ in seconds.values), "s")
        told = {"kind": kind, "at": n, "floor": floor}
        rows.append(Row(f"{n} {kind}", seconds, expected, ratio(seconds, expected), "growth of the floor", told))
    print()
    heads = [kind, "s a step", "expected", "expected over measured"]
    expectations = [significant(r.peer.median) if r.peer else "-" for r in rows]
    cells = zip(rows, expectations, strict=True)
    show(heads, [[str(r.more["at"]), number(r.ours), s, number(r.ratio)] for r, s in cells])
    if options.out:
        _draw(options, kind, rows)
    return rows


def _draw(options: Options, kind: str, rows: list[Row]) -> None:
    from benches.plots import lines

    series = {"measured": [r.ours.median for r in rows], "expected": [r.peer.median for r in rows if r.peer]}
    at = [r.more["at"] for r in rows]
    lines(Path(options.out) / f"scaling_{kind}.svg", f"a step by {kind}", (kind, "s"), at, series)
