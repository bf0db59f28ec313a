"""Stages and where they lie."""

from hypothesis import given
from hypothesis import strategies as st

from megaswitch.topology.placement import place_of, stage_of


@given(st.booleans(), st.integers(1, 9), st.integers(1, 5))
def test_every_stage_has_one_place(v, num_ranks, num_chunks):
    num_chunks = 2 if v else num_chunks
    places = [place_of(v, num_ranks, stage) for stage in range(num_ranks * num_chunks)]
    assert sorted(places) == [(rank, chunk) for rank in range(num_ranks) for chunk in range(num_chunks)]
    assert [stage_of(v, num_ranks, rank, chunk) for rank, chunk in places] == list(range(num_ranks * num_chunks))


def test_round_and_to_and_fro():
    assert [place_of(False, 3, stage) for stage in range(6)] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    assert [place_of(True, 3, stage) for stage in range(6)] == [(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (0, 1)]
