"""What follows from a ParamSpec for one place in the grid."""

from collections.abc import Iterable

from megaswitch.params.boxes import Box
from megaswitch.params.spec import PARTS, ParamSpec
from megaswitch.topology.grid import AxisName, Grid


def shard_range(size: int, parts: int, index: int) -> tuple[int, int]:
    """First and one past the last of part `index` when `size` is cut into `parts` that differ by at most one."""
    return index * size // parts, (index + 1) * size // parts


def local_box(spec: ParamSpec, grid: Grid, rank: int) -> Box:
    """The part of the tensor that `rank` holds."""
    offset, shape = [0] * len(spec.shape), list(spec.shape)
    for axis, dim in spec.shards:
        start, stop = shard_range(spec.shape[dim], grid.size(axis), grid.index(rank, axis))
        offset[dim], shape[dim] = start, stop - start
    return Box(tuple(offset), tuple(shape))


def partial_axes(spec: ParamSpec, grid: Grid, sequence_parallel: bool) -> tuple[AxisName, ...]:
    """Axes other than the data axis over which the gradient has to be summed."""
    if grid.tp == 1:
        return ()
    partial = spec.tp_partial == "always" or (spec.tp_partial == "sequence_parallel" and sequence_parallel)
    return ("tp",) if partial else ()


def cut_axes(spec: ParamSpec, grid: Grid) -> tuple[AxisName, ...]:
    """Axes that cut the tensor's matrices (not the one that divides experts among ranks)."""
    return tuple(a for a, dim in spec.shards if grid.size(a) > 1 and not (spec.expert and dim == 0))


def replicated_axes(spec: ParamSpec, grid: Grid) -> tuple[AxisName, ...]:
    """Axes along which ranks hold the same values, and only the first of them is counted and saved."""
    plane: tuple[AxisName, ...] = ("edp", "ep", "etp") if spec.expert else ("dp", "tp")
    return tuple(a for a in plane if grid.size(a) > 1 and a not in dict(spec.shards))


def count(specs: Iterable[ParamSpec]) -> dict[str, int]:
    """Parameters by part, and "total"."""
    counts: dict[str, int] = dict.fromkeys(PARTS, 0)
    for spec in specs:
        counts[spec.part] += spec.size
    return {**counts, "total": sum(counts.values())}


def active(specs: Iterable[ParamSpec], experts_per_token: int = 1) -> int:
    """Parameters that one token meets: everything but the experts, the router among it, and as many experts of each
    Switch layer as the token is sent to."""
    total = 0
    for spec in specs:
        total += spec.size // spec.shape[0] * min(experts_per_token, spec.shape[0]) if spec.expert else spec.size
    return total
