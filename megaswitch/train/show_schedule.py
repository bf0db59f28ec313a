"""What `megaswitch schedule` shows: schedules of a configuration's own stages, played by their FLOPs."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from megaswitch.model.config import STACKS, ModelConfig
from megaswitch.model.units import Unit, cut_stages, stage_flops, stage_problems
from megaswitch.pipeline.chart import NAMES, Chart, Part
from megaswitch.pipeline.picture import picture
from megaswitch.pipeline.schedule import ScheduleKind, make_schedule
from megaswitch.pipeline.simulate import Costs, simulate
from megaswitch.pipeline.text import gantt
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.grid import layout_problems
from megaswitch.topology.placement import stage_of
from megaswitch.train.config import RunConfig
from megaswitch.train.ranges import range_problems
from megaswitch.utils.problem import refuse

_MOST_COLUMNS = 180
_HELD = "micro-batches x chunks at most, from the beginning of F to the end of B or W"
_LEGEND = f"""F forward, B backward (I of the inputs, W of the weights) of a micro-batch;
small letters: decoder; blanks: waiting; held: {_HELD}"""


@dataclass(frozen=True)
class Play:
    """A schedule of a model's stages.

    Args:
        model: the model.
        layout: how its stages lie; ranks are pipeline ranks alone.
        cuts: units of each stage.
        chart: what happens when; 1 is the forward of an average stage.
    """

    model: ModelConfig
    layout: LayoutConfig
    cuts: Sequence[Sequence[Unit]]
    chart: Chart

    @property
    def note(self) -> str:
        """Whose stages these are, and in which unit time is told."""
        name = self.model.preset or "the model"
        return f"stages of {name} by their FLOPs; time 1 = forward of an average stage; I and W take as long as F"

    def stages(self, rank: int) -> list[int]:
        """Stages of a rank by chunk."""
        layout = self.layout
        return [stage_of(layout.v_placement, layout.pp, rank, chunk) for chunk in range(layout.num_chunks)]


def play(config: RunConfig, kind: ScheduleKind, num_microbatches: int, transfer: float) -> Play:
    """Cut the model, make the schedule and play it; `transfer` is the time of a message.

    Raises UserError with all that is wrong with the model or its layout.
    """
    layout = replace(config.layout, schedule=kind, tp=1, ep=1, etp=1)
    refuse([*range_problems(config), *layout_problems(layout, layout.pp)])
    refuse(stage_problems(config.model, layout))
    cuts, v = cut_stages(config.model, layout), layout.v_placement
    flops = [stage_flops(config.model, units) for units in cuts]
    times = [flop * len(flops) / sum(flops) for flop in flops]
    schedule = make_schedule(kind, layout.pp, layout.num_chunks, num_microbatches)
    timeline = simulate(schedule, Costs(times, times, times, transfer), v=v)
    places = [[stage_of(v, layout.pp, r, c) for c in range(layout.num_chunks)] for r in range(layout.pp)]
    parts = [[_part(cuts[stage]) for stage in stages] for stages in places]
    return Play(config.model, layout, cuts, Chart(kind, num_microbatches, timeline, parts))


def _part(units: Sequence[Unit]) -> Part:
    stacks = {unit.stack for unit in units}
    return "both" if len(stacks) > 1 else stacks.pop()


def _blocks(units: Sequence[Unit]) -> str:
    """For instance "encoder 3-5"."""
    said = []
    for stack in STACKS:
        layers = [unit.layer for unit in units if unit.kind == "block" and unit.stack == stack]
        if layers:
            said.append(f"{stack} {layers[0]}" + (f"-{layers[-1]}" if len(layers) > 1 else ""))
    return ", ".join(said)


def draw(plays: Sequence[Play], form: Literal["svg", "png"]) -> bytes:
    """A picture of all of them."""
    return picture([one.chart for one in plays], f"{plays[0].note}; holds: {_HELD}", form)


def show(plays: Sequence[Play]) -> None:
    """On the terminal: charts to one scale; a row for each rank, or where there are several schedules for each."""
    width = min(shutil.get_terminal_size((110, 24)).columns, _MOST_COLUMNS)
    console = Console(width=width, highlight=False)
    end = max(one.chart.timeline.makespan for one in plays)
    for one in plays:
        console.print(one.chart.title, style="bold")
        for line in gantt(one.chart, width, end):
            console.print(line, no_wrap=True, overflow="ignore", crop=False)
        console.print()
    console.print(_ranks(plays[0]) if len(plays) == 1 else _together(plays))
    if len(plays) == 1:
        timeline = plays[0].chart.timeline
        console.print(f"makespan {timeline.makespan:.2f}, bubble {timeline.bubble:.1%}")
    console.print(f"\n{plays[0].note}\n{_LEGEND}", style="dim")


def _ranks(one: Play) -> Table:
    table = _table("rank", "stages (blocks)", "busy", "held at most")
    for rank, live in enumerate(one.chart.timeline.peak_live):
        stages = "; ".join(f"{stage} ({_blocks(one.cuts[stage])})" for stage in one.stages(rank))
        table.add_row(str(rank), stages, f"{one.chart.busy(rank):.1%}", str(live))
    return table


def _together(plays: Sequence[Play]) -> Table:
    table = _table("schedule", "makespan", "bubble", "held at most, by rank")
    for one in plays:
        timeline = one.chart.timeline
        held = " ".join(map(str, timeline.peak_live))
        table.add_row(NAMES[one.chart.kind], f"{timeline.makespan:.2f}", f"{timeline.bubble:.1%}", held)
    return table


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(head)
    return table


def as_facts(plays: Sequence[Play]) -> dict[str, Any]:
    """The same as plain values."""
    return {"preset": plays[0].model.preset, "schedules": [_facts(one) for one in plays]}


def _facts(one: Play) -> dict[str, Any]:
    timeline = one.chart.timeline
    return {
        "kind": one.chart.kind,
        "pp": one.layout.pp,
        "chunks": one.layout.num_chunks,
        "microbatches": one.chart.num_microbatches,
        "makespan": timeline.makespan,
        "bubble": timeline.bubble,
        "peak_live": timeline.peak_live,
        "busy": [one.chart.busy(rank) for rank in range(one.layout.pp)],
        "stages": [
            {
                "stage": stage,
                "rank": rank,
                "chunk": chunk,
                "blocks": _blocks(one.cuts[stage]),
                "forward_flops": stage_flops(one.model, one.cuts[stage]),
            }
            for rank in range(one.layout.pp)
            for chunk, stage in enumerate(one.stages(rank))
        ],
        "spans": [
            [{"action": str(span.action), "start": span.start, "end": span.end} for span in spans]
            for spans in timeline.spans
        ],
    }
