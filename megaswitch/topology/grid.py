"""Rank arithmetic: a world seen as a dense and as an expert grid that share the pipeline axis.

    rank = (pp * DP + dp) * TP + tp            dense view, tp innermost
    rank = pp * DP*TP + (edp * EP + ep) * ETP + etp      expert view of the same ranks
"""

from dataclasses import dataclass
from typing import Literal

from megaswitch.topology.config import LayoutConfig
from megaswitch.utils.problem import Problem, refuse

AxisName = Literal["pp", "dp", "tp", "edp", "ep", "etp"]
AXIS_NAMES: tuple[AxisName, ...] = ("pp", "dp", "tp", "edp", "ep", "etp")


@dataclass(frozen=True)
class Grid:
    """Sizes of all axes; pp * dp * tp and pp * edp * ep * etp are both the world."""

    pp: int
    dp: int
    tp: int
    edp: int
    ep: int
    etp: int

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.pp * self.dp * self.tp

    def size(self, axis: AxisName) -> int:
        """Ranks along an axis."""
        sizes = {"pp": self.pp, "dp": self.dp, "tp": self.tp, "edp": self.edp, "ep": self.ep, "etp": self.etp}
        return sizes[axis]

    def stride(self, axis: AxisName) -> int:
        """Distance in ranks between neighbours along an axis."""
        strides = {
            "tp": 1,
            "dp": self.tp,
            "pp": self.dp * self.tp,
            "etp": 1,
            "ep": self.etp,
            "edp": self.ep * self.etp,
        }
        return strides[axis]

    def index(self, rank: int, axis: AxisName) -> int:
        """Position of `rank` along an axis."""
        return rank // self.stride(axis) % self.size(axis)

    def ranks(self, rank: int, axis: AxisName) -> tuple[int, ...]:
        """All ranks of the line along `axis` that goes through `rank`, in order."""
        first = rank - self.index(rank, axis) * self.stride(axis)
        return tuple(first + i * self.stride(axis) for i in range(self.size(axis)))


def layout_problems(layout: LayoutConfig, world: int) -> list[Problem]:
    """What makes a layout impossible in a world of `world` processes; empty when it is possible."""
    problems = [
        Problem(f"layout.{name}", f"is {size}", "give a whole number of at least 1")
        for name, size in (("tp", layout.tp), ("pp", layout.pp), ("ep", layout.ep), ("etp", layout.etp))
        if size < 1
    ]
    if layout.num_chunks < 1:
        problems.append(Problem("layout.chunks", f"is {layout.num_chunks}", "give at least 1"))
    elif layout.v_placement and layout.num_chunks != 2:
        remedy = "set layout.chunks=2, or layout.schedule=zb_h1, which takes any number"
        problems.append(Problem("layout.chunks", f"is {layout.num_chunks}, but layout.schedule=zb_v wants 2", remedy))
    if problems:
        return problems
    product = layout.pp * layout.tp
    if world % product:
        problems.append(
            Problem(
                "layout",
                f"{world} processes cannot be divided by pp x tp = {layout.pp} x {layout.tp} = {product}",
                f"start a multiple of {product} processes, or choose pp and tp whose product divides {world}",
            )
        )
        return problems
    if layout.etp not in (1, layout.tp):
        problems.append(Problem("layout.etp", f"is {layout.etp}", f"choose 1 or layout.tp = {layout.tp}"))
    plane = world // layout.pp
    if plane % (layout.ep * layout.etp):
        problems.append(
            Problem(
                "layout.ep",
                f"ep x etp = {layout.ep} x {layout.etp} does not divide dp x tp = {plane}",
                f"choose ep so that ep x etp divides {plane}",
            )
        )
    return problems


def make_grid(layout: LayoutConfig, world: int) -> Grid:
    """The grid of a layout in a world; raises UserError with all that is wrong with it."""
    refuse(layout_problems(layout, world))
    plane = world // layout.pp
    return Grid(
        pp=layout.pp,
        dp=plane // layout.tp,
        tp=layout.tp,
        edp=plane // (layout.ep * layout.etp),
        ep=layout.ep,
        etp=layout.etp,
    )
