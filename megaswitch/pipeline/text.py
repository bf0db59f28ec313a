"""A schedule as text: a line for each rank, time from left to right, in colour where the terminal has any."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from megaswitch.pipeline.actions import Kind
from megaswitch.pipeline.chart import Chart, Part
from megaswitch.pipeline.simulate import Span

_STYLES: dict[tuple[Part, Kind], str] = {
    ("encoder", Kind.FORWARD): "black on bright_blue",
    ("encoder", Kind.BACKWARD): "white on blue",
    ("encoder", Kind.INPUT): "white on blue",
    ("encoder", Kind.WEIGHT): "black on bright_cyan",
    ("decoder", Kind.FORWARD): "black on bright_yellow",
    ("decoder", Kind.BACKWARD): "black on yellow",
    ("decoder", Kind.INPUT): "black on yellow",
    ("decoder", Kind.WEIGHT): "black on white",
}
_LEAST_STEP = 10
"""Columns between two numbers of the axis, at least."""


def gantt(chart: Chart, width: int, end: float) -> list[Text]:
    """Lines of at most `width` columns (and at least some ten) up to the time `end`: one a rank, then the axis.

    An action is its letter with the micro-batch where there is room for it, then dashes; small letters are the
    decoder's stages; blanks are waiting.
    """
    labels = [f"rank {rank} " for rank in range(len(chart.parts))]
    margin = max(map(len, labels))
    columns = max(width - margin - 2, 10)
    scale = columns / (end or 1.0)
    lines = []
    for label, spans, parts in zip(labels, chart.timeline.spans, chart.parts, strict=True):
        lines.append(Text(label.ljust(margin) + "|") + Text.assemble(*_cells(spans, parts, scale, columns)) + "|")
    return [*lines, Text(" " * (margin + 1) + axis(end, columns))]


def _cells(spans: Sequence[Span], parts: Sequence[Part], scale: float, columns: int) -> Iterator[tuple[str, str]]:
    """Text and style of each stretch, waiting included."""
    at = 0
    for span in spans:
        start, end = max(at, round(span.start * scale)), round(span.end * scale)
        yield " " * (start - at), ""
        yield _cell(span, parts, end - start), _STYLES.get((_half(span, parts), span.action.kind), "")
        at = max(start, end)
    yield " " * (columns - at), ""


def _half(span: Span, parts: Sequence[Part]) -> Part:
    """A stage of both is shown as one of the encoder, which the model begins with."""
    return "decoder" if parts[span.action.chunk] == "decoder" else "encoder"


def _cell(span: Span, parts: Sequence[Part], width: int) -> str:
    letter = span.action.kind.value
    letter = letter.lower() if _half(span, parts) == "decoder" else letter
    label = f"{letter}{span.action.microbatch}"
    return (label if len(label) <= width else letter).ljust(width, "-")[: max(width, 0)]


def axis(end: float, columns: int) -> str:
    """Times under their columns, at round distances."""
    line = ""
    step = round_step(end * _LEAST_STEP / columns)
    time = 0.0
    while step and (at := round(time * columns / end)) <= columns:
        line = line.ljust(at) + f"{time:g}"
        time = round(time + step, 9)
    return line


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least that; 0 for 0."""
    if least <= 0:
        return 0.0
    power = 10.0 ** -9
    while power * 10 < least:
        power *= 10
    return float(next(f"{power * factor:.6g}" for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9)))
