"""The highest memory of a step, beside what `megaswitch dry-run` foretells."""

import gc
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benches.command_line import Options
from benches.crew import Round, crew
from benches.models import Ours, refuse_too_large, run_config, switch_model
from benches.report import Row, finish, number, show, significant
from benches.timing import Figure, ratio
from megaswitch.dry_run.look import look
from megaswitch.ops.registry import choose_ops
from megaswitch.topology.start import Place
from megaswitch.train.config import RunConfig

_MIB = 2**20


def measure(options: Options) -> None:
    """Prints MiB by how they are looked at: what torch asks for, and what the system has to give."""
    config = run_config(switch_model(options, 4 if options.quick else options.experts), options)
    refuse_too_large([config.model])
    facts = _foretold(config)["memory"]
    predicted = facts["peak"] / _MIB
    rows = []
    for name, make in (("allocated", _allocated), ("resident", _resident)):
        found = [_in_a_process(config, make) for _ in range(1 if options.quick else min(3, options.repeats))]
        taken = Figure(tuple(n / _MIB for n in found), "MiB")
        expected = Figure(tuple(predicted for _ in found), "MiB")
        rows.append(Row(name, taken, expected, ratio(expected, taken), "dry-run", {"kinds": facts["at_peak"]}))
    lines = [[r.case, number(r.ours), significant(predicted), number(r.ratio)] for r in rows]
    show(["peak of a step", "MiB", "foretold", "of what was foretold"], lines)
    kinds = ", ".join(f"{kind} {significant(n / _MIB)}" for kind, n in facts["at_peak"].items())
    print(f"\nforetold at the peak, MiB: {kinds}")
    if options.out:
        _draw(Path(options.out), predicted, rows)
    finish(options, rows, headline=rows[-1])


def _foretold(config: RunConfig) -> Any:
    """On the operations that this machine would use; those of a machine that is not there are asked for otherwise."""
    if config.ops.backend == "auto":
        name: Any = choose_ops("auto", torch.device("cpu")).name
        config = replace(config, ops=replace(config.ops, backend=name))
    return look(config, 1, "0", "balanced")[0].facts


def _in_a_process(config: RunConfig, make: Any) -> float:
    """A figure from a process of its own, in which nothing else was allocated."""
    with crew(1, lambda place: make(config, place)) as one:
        one.once()
        return float(one.results[0])


def _resident(config: RunConfig, place: Place) -> Round:
    """The most memory that the system gave for the model and its third step, beyond what libraries take."""
    del place

    def once() -> int:
        _run_libraries()
        before = _status("VmRSS")
        ours = Ours(config)
        ours.step()
        ours.step()
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
        ours.step()
        return _status("VmHWM") - before

    return once


def _run_libraries() -> None:
    """What a product takes for itself, it keeps."""
    side = torch.ones(512, 512, requires_grad=True)
    (side @ side).sum().backward()  # type: ignore[no-untyped-call]
    gc.collect()


def _status(name: str) -> int:
    """Bytes, from the kernel's account of this process."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


def _allocated(config: RunConfig, place: Place) -> Round:
    """The most bytes that torch had asked for at once in a third step."""
    del place

    def once() -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            ours = Ours(config)
            ours.step()
            ours.step()
            with torch.profiler.record_function("third"):
                ours.step()
        totals = [(e.start_time_ns, e) for root in _tree(seen) for e in _all(root)]
        third = next(e for _, e in totals if e.name == "third")
        inside = [e for e in _all(third) if e.name == "[memory]"]
        return max(int(e.extra_fields.total_allocated) for e in inside)

    return once


def _tree(seen: Any) -> list[Any]:
    roots: list[Any] = seen.profiler.kineto_results.experimental_event_tree()
    return roots


def _all(root: Any) -> Iterator[Any]:
    todo = [root]
    while todo:
        event = todo.pop()
        yield event
        todo.extend(event.children)


def _draw(folder: Path, predicted: float, rows: list[Row]) -> None:
    from benches.plots import bars

    names = ["foretold", *(row.case for row in rows)]
    bars(folder / "memory.svg", "peak of a step", "MiB", names, {"MiB": [predicted, *(r.ours.median for r in rows)]})
