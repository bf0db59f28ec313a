"""Plots of the benchmarks, as SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot


def bars(path: Path, title: str, unit: str, names: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    """Groups of bars: one group a name, one bar a series."""
    figure, axes = pyplot.subplots(figsize=(1.5 + 0.9 * len(names), 4))
    width = 0.8 / len(series)
    for i, (label, values) in enumerate(series.items()):
        axes.bar([at + i * width for at in range(len(names))], values, width, label=label)
    axes.set_xticks([at + width * (len(series) - 1) / 2 for at in range(len(names))], names, rotation=30, ha="right")
    axes.set(ylabel=unit, title=title)
    _save(figure, axes, path)


def lines(
    path: Path, title: str, labels: tuple[str, str], at: Sequence[float], series: Mapping[str, Sequence[float]]
) -> None:
    """Lines over a logarithmic axis of doublings; series whose name begins with "expected" are dashed."""
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for label, values in series.items():
        style = "--" if label.startswith("expected") else "o-"
        axes.plot(at, values, style, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(at), [f"{x:g}" for x in at])
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    axes.set_ylim(bottom=0)
    _save(figure, axes, path)


def _save(figure: Any, axes: Any, path: Path) -> None:
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
