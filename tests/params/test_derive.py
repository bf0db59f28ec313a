"""What follows from a ParamSpec: which part a rank holds, over which axes gradients and statistics are summed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.params.derive import count, cut_axes, local_box, partial_axes, replicated_axes, shard_range
from megaswitch.params.spec import PARTS, Init, ParamSpec
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.grid import Grid, make_grid

ONES = Init("ones")
COLUMN = ParamSpec("column", (6, 13), ONES, "attn", shards=(("tp", 1),))
ROW = ParamSpec("row", (11, 4), ONES, "attn", shards=(("tp", 0),))
NORM = ParamSpec("norm", (5,), ONES, "norms", tp_partial="sequence_parallel")
ROUTER = ParamSpec("router", (5, 8), ONES, "router", tp_partial="always")
PLAIN = ParamSpec("plain", (3, 2), ONES, "embed")
WI = ParamSpec("wi", (9, 3, 7), ONES, "experts", shards=(("ep", 0), ("etp", 2)), expert=True)
WO = ParamSpec("wo", (9, 7, 3), ONES, "experts", shards=(("ep", 0), ("etp", 1)), expert=True)
SPECS = (COLUMN, ROW, NORM, ROUTER, PLAIN, WI, WO)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Any grid of up to 48 ranks, also where it does not divide what it cuts."""
    pp, tp, dp = draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    etp = draw(st.sampled_from(sorted({1, tp})))
    plane = dp * tp // etp
    ep = draw(st.sampled_from([n for n in range(1, plane + 1) if plane % n == 0]))
    return make_grid(LayoutConfig(tp=tp, pp=pp, ep=ep, etp=etp), pp * dp * tp)


@given(st.integers(0, 200), st.integers(1, 17))
def test_shards_partition_and_differ_by_at_most_one(size, parts):
    ranges = [shard_range(size, parts, i) for i in range(parts)]
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(size))
    lengths = {stop - start for start, stop in ranges}
    assert max(lengths) - min(lengths) <= 1


@given(grids(), st.sampled_from(SPECS))
def test_a_stage_holds_every_element_once_for_each_replica(grid, spec):
    """On each pipeline stage the boxes cover the tensor; those that speak for their replicas cover it once."""
    plane = grid.world // grid.pp
    replicas = replicated_axes(spec, grid)
    for stage in range(grid.pp):
        held, spoken = np.zeros(spec.shape, int), np.zeros(spec.shape, int)
        for rank in range(stage * plane, (stage + 1) * plane):
            box = local_box(spec, grid, rank)
            held[box.slices] += 1
            spoken[box.slices] += all(grid.index(rank, axis) == 0 for axis in replicas)
        assert (spoken == 1).all()
        assert (held == np.prod([grid.size(axis) for axis in replicas], dtype=int)).all()


@given(grids(), st.sampled_from(SPECS))
def test_replicas_hold_the_same_box(grid, spec):
    for axis in replicated_axes(spec, grid):
        for rank in range(grid.world):
            assert len({local_box(spec, grid, other) for other in grid.ranks(rank, axis)}) == 1


TABLE = {
    "column": (COLUMN, {"dp"}, {"tp"}, set(), set()),
    "row": (ROW, {"dp"}, {"tp"}, set(), set()),
    "norm": (NORM, {"dp", "tp"}, set(), {"tp"}, set()),
    "router": (ROUTER, {"dp", "tp"}, set(), {"tp"}, {"tp"}),
    "plain": (PLAIN, {"dp", "tp"}, set(), set(), set()),
    "wi": (WI, {"edp"}, {"etp"}, set(), set()),
}


@pytest.mark.parametrize("name", TABLE)
def test_axes_when_all_are_larger_than_one(name):
    """tp 2, dp 8, ep 4, etp 2, edp 2."""
    spec, replicated, cut, partial_split, partial_alike = TABLE[name]
    grid = make_grid(LayoutConfig(tp=2, ep=4, etp=2), 16)
    assert set(replicated_axes(spec, grid)) == replicated
    assert set(cut_axes(spec, grid)) == cut
    assert set(partial_axes(spec, grid, sequence_parallel=True)) == partial_split
    assert set(partial_axes(spec, grid, sequence_parallel=False)) == partial_alike
    assert spec.data_axis == ("edp" if spec.expert else "dp")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_alone_nothing_is_replicated_cut_or_summed(spec):
    grid = make_grid(LayoutConfig(), 1)
    assert replicated_axes(spec, grid) == cut_axes(spec, grid) == partial_axes(spec, grid, True) == ()
    assert local_box(spec, grid, 0).shape == spec.shape


def test_whole_experts_without_expert_tensor_parallelism_are_cut_by_nothing():
    """Ranks of a tp line then hold different experts, or replicas along edp; never a part of a matrix."""
    grid = make_grid(LayoutConfig(tp=2, ep=2), 4)
    assert cut_axes(WI, grid) == () and replicated_axes(WI, grid) == ("edp",)


def test_counts():
    assert count([]) == {**dict.fromkeys(PARTS, 0), "total": 0}
    counted = count(SPECS)
    assert counted["attn"] == 6 * 13 + 11 * 4
    assert counted["experts"] == 2 * 9 * 3 * 7
    assert counted["total"] == sum(spec.size for spec in SPECS) == sum(counted[part] for part in PARTS)
