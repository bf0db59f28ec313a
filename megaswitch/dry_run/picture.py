"""Memory over a step as a picture: kinds one upon the other, and under them the parts of the step."""

from collections.abc import Sequence
from io import BytesIO
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from megaswitch.dry_run.facts import Facts
from megaswitch.dry_run.memory import KINDS, Moment
from megaswitch.utils.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "weights": "#3b6ea5",
    "gradients": "#7fb2dd",
    "optimizer": "#4d9078",
    "activations": "#e2a33d",
    "buffers": "#b4b4b4",
}
_PHASES = {
    "forward": "#8fbce6",
    "recompute": "#cfe3f6",
    "backward": "#1f4f86",
    "reduction": "#c4600f",
    "optimizer": "#4d9078",
    "publish": "#b9a1d6",
}
_COLUMNS = 1200
"""Moments that are drawn: of each column the fullest."""


def phases_of(course: Sequence[Moment]) -> list[str]:
    """The part of the step that each moment belongs to. What lies between passes belongs to the pass before; what
    follows the last pass, up to the optimizer, is reduction."""
    named = [moment.phase for moment in course]
    passes = [i for i, phase in enumerate(named) if phase in ("forward", "backward", "recompute")]
    first, last = (passes[0], passes[-1]) if passes else (0, -1)
    now = "forward"
    for i, phase in enumerate(named):
        if phase:
            now = phase
        elif i > last and now not in ("optimizer", "publish"):
            now = "reduction"
        named[i] = "forward" if i < first else now
    return named


def fullest(course: Sequence[Moment], columns: int = _COLUMNS) -> list[tuple[Moment, str]]:
    """At most one moment, the fullest, of each of so many equal stretches of the step, with its part of the step."""
    end = course[-1].operation + 1
    best: dict[int, tuple[Moment, str]] = {}
    for moment, phase in zip(course, phases_of(course), strict=True):
        column = moment.operation * columns // end
        if column not in best or sum(moment.bytes) > sum(best[column][0].bytes):
            best[column] = (moment, phase)
    return [best[column] for column in sorted(best)]


def picture(facts: Facts, course: Sequence[Moment], form: Literal["svg", "png"]) -> bytes:
    """The picture's file. Raises UserError where matplotlib is missing."""
    try:
        from matplotlib import rc_context  # here, for it is slow to import and needed for pictures only
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("a picture needs matplotlib: pip install matplotlib, or leave --out away for text") from None
    with rc_context({"font.size": 9, "svg.hashsalt": "megaswitch"}):
        figure = Figure(figsize=(11, 5), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[14, 1])
        shown = fullest(course)
        _areas(above, facts, shown)
        _strip(below, shown, course[-1].operation)
        out = BytesIO()
        figure.savefig(out, format=form, dpi=130, metadata={"Date": None} if form == "svg" else None)
    return out.getvalue()


def _areas(axes: "Axes", facts: Facts, shown: Sequence[tuple[Moment, str]]) -> None:
    times = [moment.operation for moment, _ in shown]
    rows = [[moment.bytes[i] / 1e9 for moment, _ in shown] for i in range(len(KINDS))]
    areas = axes.stackplot(times, rows, colors=[_COLOURS[kind] for kind in KINDS], linewidth=0, step="post")
    peak, memory = facts["memory"]["peak"] / 1e9, facts["memory"]
    labels = [f"{kind}, up to {memory[kind] / 1e9:.3g} GB" for kind in KINDS]
    axes.axhline(peak, color="#222222", linewidth=0.8, linestyle="--")
    axes.annotate(
        f"peak {peak:.4g} GB", (times[0], peak), (4, 3), textcoords="offset points", fontweight="bold", va="bottom"
    )
    axes.set_ylim(0, peak * 1.1)
    axes.set_ylabel("GB")
    axes.legend(areas[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False)
    layout = facts["layout"]
    sizes = ", ".join(f"{name} {layout[name]}" for name in ("pp", "dp", "tp", "ep", "etp"))
    axes.set_title(
        f"{facts['preset'] or 'model'}: memory of rank {facts['rank']} of {facts['world']} over a step "
        f"({sizes}; {facts['microbatches']} micro-batches, {facts['routing']} routing)",
        loc="left",
        fontsize=10,
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _strip(axes: "Axes", shown: Sequence[tuple[Moment, str]], end: int) -> None:
    """The parts of the step, each as wide as its operations."""
    used: dict[str, str] = {}
    runs = [(phase, next(run)[0].operation) for phase, run in groupby(shown, key=lambda one: one[1])]
    starts = [0, *(start for _, start in runs[1:]), end]
    for (phase, _), start, stop in zip(runs, starts[:-1], starts[1:], strict=True):
        used[phase] = _PHASES[phase]
        axes.axvspan(start, stop, color=_PHASES[phase], linewidth=0)
    axes.set_xlim(0, end)
    axes.set_yticks([])
    axes.set_xlabel("operations of the step, in order")
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=phase) for phase, colour in _PHASES.items() if phase in used]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.005, 0.5), frameon=False, ncols=2, fontsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
