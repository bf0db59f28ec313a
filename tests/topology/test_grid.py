"""Rank arithmetic as properties of every grid, and what makes a layout impossible."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.grid import AXIS_NAMES, Grid, layout_problems, make_grid
from megaswitch.utils.errors import UserError


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Any grid that a layout of up to 96 ranks can have."""
    pp, tp, dp = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    etp = draw(st.sampled_from(sorted({1, tp})))
    quotient = dp * tp // etp
    ep = draw(st.sampled_from([n for n in range(1, quotient + 1) if quotient % n == 0]))
    return make_grid(LayoutConfig(tp=tp, pp=pp, ep=ep, etp=etp), pp * dp * tp)


@given(grids())
def test_the_lines_of_every_axis_partition_the_world(grid):
    for axis in AXIS_NAMES:
        lines = {grid.ranks(rank, axis) for rank in range(grid.world)}
        assert all(len(line) == grid.size(axis) for line in lines)
        assert sorted(rank for line in lines for rank in line) == list(range(grid.world))


@given(grids())
def test_a_rank_stands_in_its_line_at_its_index(grid):
    for rank in range(grid.world):
        for axis in AXIS_NAMES:
            assert grid.ranks(rank, axis)[grid.index(rank, axis)] == rank


@given(grids())
def test_ranks_and_indices_determine_each_other_in_both_views(grid):
    for rank in range(grid.world):
        pp, dp, tp, edp, ep, etp = (grid.index(rank, a) for a in ("pp", "dp", "tp", "edp", "ep", "etp"))
        assert rank == (pp * grid.dp + dp) * grid.tp + tp
        assert rank == pp * grid.dp * grid.tp + (edp * grid.ep + ep) * grid.etp + etp


@given(grids())
def test_both_views_share_the_pipeline(grid):
    assert grid.dp * grid.tp == grid.edp * grid.ep * grid.etp
    for rank in range(grid.world):
        for axis in ("dp", "tp", "edp", "ep", "etp"):
            assert {grid.index(other, "pp") for other in grid.ranks(rank, axis)} == {grid.index(rank, "pp")}


@given(grids())
def test_experts_lie_inside_tensor_parallelism_first(grid):
    """ep takes the neighbours: with etp = 1 those of a tp line before it leaves it; with etp = tp never two of one."""
    for rank in range(grid.world):
        ep, tp = set(grid.ranks(rank, "ep")), set(grid.ranks(rank, "tp"))
        if grid.etp == grid.tp > 1:
            assert ep & tp == {rank}
            assert grid.ranks(rank, "etp") == grid.ranks(rank, "tp")
        elif grid.ep % grid.tp == 0:
            assert tp <= ep
        elif grid.tp % grid.ep == 0:
            assert ep <= tp


IMPOSSIBLE = {
    "tp 0": ({"tp": 0}, 8, {"layout.tp": "is 0"}),
    "pp below 0": ({"pp": -2}, 8, {"layout.pp": "is -2"}),
    "ep 0": ({"ep": 0}, 8, {"layout.ep": "is 0"}),
    "etp 0": ({"etp": 0}, 8, {"layout.etp": "is 0"}),
    "no chunks": ({"chunks": 0}, 8, {"layout.chunks": "is 0"}),
    "V of one chunk": (
        {"pp": 2, "chunks": 1, "schedule": "zb_v"},
        8,
        {"layout.chunks": "is 1, but layout.schedule=zb_v wants 2"},
    ),
    "two at once": ({"tp": 0, "ep": 0}, 8, {"layout.tp": "is 0", "layout.ep": "is 0"}),
    "world not divided": ({"tp": 2, "pp": 3}, 8, {"layout": "8 processes cannot be divided by pp x tp = 3 x 2 = 6"}),
    "more than the world": ({"tp": 2}, 1, {"layout": "1 processes cannot be divided by pp x tp = 1 x 2 = 2"}),
    "etp is neither": ({"tp": 4, "etp": 2}, 8, {"layout.etp": "is 2"}),
    "etp without tp": ({"etp": 2}, 8, {"layout.etp": "is 2"}),
    "ep does not divide": ({"ep": 3}, 8, {"layout.ep": "ep x etp = 3 x 1 does not divide dp x tp = 8"}),
    "ep beyond its stage": (
        {"pp": 2, "ep": 8},
        8,
        {"layout.ep": "ep x etp = 8 x 1 does not divide dp x tp = 4"},
    ),
    "ep with etp": (
        {"tp": 2, "etp": 2, "ep": 8},
        8,
        {"layout.ep": "ep x etp = 8 x 2 does not divide dp x tp = 8"},
    ),
    "etp and ep": (
        {"tp": 4, "etp": 3, "ep": 5},
        8,
        {"layout.etp": "is 3", "layout.ep": "ep x etp = 5 x 3 does not divide dp x tp = 8"},
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_layouts_are_told_with_a_remedy(case):
    layout, world, told = IMPOSSIBLE[case]
    problems = layout_problems(LayoutConfig(**layout), world)
    assert {p.key: p.message for p in problems} == told
    assert all(p.remedy for p in problems)
    with pytest.raises(UserError) as caught:
        make_grid(LayoutConfig(**layout), world)
    assert all(key in str(caught.value) and message in str(caught.value) for key, message in told.items())


def test_a_possible_layout_has_no_problems():
    assert layout_problems(LayoutConfig(tp=2, pp=2, ep=4, etp=1), 8) == []
    assert make_grid(LayoutConfig(tp=2, pp=2, ep=2, etp=2), 8) == Grid(pp=2, dp=2, tp=2, edp=1, ep=2, etp=2)


def test_a_v_is_of_two_chunks_on_several_ranks():
    for chunks in (None, 2):
        layout = LayoutConfig(pp=2, chunks=chunks, schedule="zb_v")
        assert layout.v_placement and layout_problems(layout, 2) == []
    alone = LayoutConfig(chunks=3, schedule="zb_v")
    assert not alone.v_placement and layout_problems(alone, 1) == []
    assert not LayoutConfig(pp=2).v_placement


def test_chunks_follow_the_pipeline():
    assert [LayoutConfig(pp=pp).num_chunks for pp in (1, 2, 4)] == [1, 2, 2]
    assert LayoutConfig(pp=4).num_stages == 8
    assert LayoutConfig(pp=4, chunks=1).num_stages == 4
