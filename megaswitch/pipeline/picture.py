"""A schedule as a Gantt chart: a row for each rank, time from left to right; SVG or PNG."""

from collections.abc import Sequence
from io import BytesIO
from math import ceil
from typing import TYPE_CHECKING, Literal

from megaswitch.pipeline.actions import Kind
from megaswitch.pipeline.chart import Chart, Part
from megaswitch.utils.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS: dict[Part, dict[Kind, str]] = {
    "encoder": {
        Kind.FORWARD: "#8fbce6",
        Kind.BACKWARD: "#1f4f86",
        Kind.INPUT: "#2f6db0",
        Kind.WEIGHT: "#cfe3f6",
    },
    "decoder": {
        Kind.FORWARD: "#f7bd7f",
        Kind.BACKWARD: "#94460a",
        Kind.INPUT: "#c4600f",
        Kind.WEIGHT: "#fde4c8",
    },
    "both": {
        Kind.FORWARD: "#a9d39e",
        Kind.BACKWARD: "#2a5c25",
        Kind.INPUT: "#3c8034",
        Kind.WEIGHT: "#daeed4",
    },
}
"""A hue for each stack: forwards middling, whole backwards darkest, weights' gradients pale."""
_WORDS = {
    Kind.FORWARD: "forward",
    Kind.BACKWARD: "backward",
    Kind.INPUT: "backward of inputs",
    Kind.WEIGHT: "backward of weights",
}
_WAIT, _INK = "#f1f1f1", "#222222"
_WIDTH, _ROW, _BAR = 13.0, 0.42, 0.86
"""Inches of the picture and of a rank's row; share of the row that its bar takes."""
_LETTER = 0.075
"""Inches that a digit takes, with some room."""


def picture(charts: Sequence[Chart], note: str, form: Literal["svg", "png"]) -> bytes:
    """The charts one below the other, to the same scale of time, `note` under them.

    Raises UserError where matplotlib is missing.
    """
    try:
        from matplotlib import rc_context  # here, for it is slow to import and needed for pictures only
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("a picture needs matplotlib: pip install matplotlib, or leave --out away for text") from None
    heights = [_ROW * len(chart.parts) + 0.75 for chart in charts]
    with rc_context({"svg.hashsalt": "megaswitch", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(_WIDTH, sum(heights) + 0.95), layout="constrained")
        axes = figure.subplots(len(charts), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        end = max(chart.timeline.makespan for chart in charts)
        for one, chart in zip(axes, charts, strict=True):
            _draw(one, chart, end)
        axes[-1].set_xlabel(note, color=_INK, fontsize=9)
        _legend(figure, charts)
        out = BytesIO()
        figure.savefig(out, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return out.getvalue()


def _draw(axes: "Axes", chart: Chart, end: float) -> None:
    """One schedule."""
    ranks = range(len(chart.parts))
    for rank in ranks:
        axes.barh(rank, chart.timeline.makespan, height=_BAR, color=_WAIT, zorder=1)
        _bars(axes, chart, rank, end)
    axes.set_title(chart.title, loc="left", fontsize=12, fontweight="bold", color=_INK)
    axes.set_xlim(0, end)
    axes.set_ylim(len(ranks) - 0.5, -0.5)
    axes.set_yticks(list(ranks), [f"rank {rank}" for rank in ranks], fontsize=10)
    held = axes.secondary_yaxis("right")
    held.set_yticks(list(ranks), [f"holds {live}" for live in chart.timeline.peak_live], fontsize=10)
    for side in (axes, held):
        side.tick_params(length=0, colors=_INK, axis="y")
        side.spines[:].set_visible(False)
    axes.tick_params(axis="x", labelsize=9, colors=_INK, length=3)


def _bars(axes: "Axes", chart: Chart, rank: int, end: float) -> None:
    for span in chart.timeline.spans[rank]:
        part, kind, width = chart.parts[rank][span.action.chunk], span.action.kind, span.end - span.start
        colour = _COLOURS[part][kind]
        axes.barh(rank, width, _BAR, span.start, color=colour, edgecolor="white", linewidth=0.7, zorder=2)
        number = str(span.action.microbatch)
        if width / end * (_WIDTH - 1.6) >= _LETTER * len(number) + 0.03:
            ink = "white" if kind in (Kind.BACKWARD, Kind.INPUT) else _INK
            middle = span.start + width / 2
            axes.text(middle, rank, number, ha="center", va="center_baseline", fontsize=8, color=ink, zorder=3)


def _legend(figure: "Figure", charts: Sequence[Chart]) -> None:
    """One entry for each colour that occurs."""
    from matplotlib.patches import Patch

    found = {
        (chart.parts[rank][span.action.chunk], span.action.kind)
        for chart in charts
        for rank, spans in enumerate(chart.timeline.spans)
        for span in spans
    }
    parts = [part for part in _COLOURS if any(part == found_part for found_part, _ in found)]
    entries: dict[str, Patch] = {}
    for kind in (Kind.FORWARD, Kind.BACKWARD, Kind.INPUT, Kind.WEIGHT):  # by columns: a row for each part
        for part in parts:
            if (part, kind) in found:
                name = "encoder and decoder" if part == "both" else part
                entries[f"{name}: {_WORDS[kind]}"] = Patch(facecolor=_COLOURS[part][kind])
    entries["waiting"] = Patch(facecolor=_WAIT, edgecolor="#cccccc")
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=ceil(len(entries) / len(parts)),
        frameon=False,
        fontsize=9.5,
    )
