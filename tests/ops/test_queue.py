"""Positions in experts' queues against a simulation that hands tokens over one by one."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.layers.moe.plan import make_plan
from megaswitch.ops.reference.routing import count_choices, queue


@st.composite
def choices(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """Groups of tokens that want an expert or (-1) none, and the number of experts."""
    experts, groups, tokens = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(0, 12))
    row = st.lists(st.integers(-1, experts - 1), min_size=tokens, max_size=tokens)
    return draw(st.lists(row, min_size=groups, max_size=groups)), experts


def one_by_one(index: list[list[int]], experts: int) -> tuple[list[list[int]], list[list[int]]]:
    positions, counts = [], []
    for group in index:
        seen, places = [0] * experts, []
        for expert in group:
            places.append(seen[expert] if expert >= 0 else 0)
            if expert >= 0:
                seen[expert] += 1
        positions.append(places)
        counts.append(seen)
    return positions, counts


def as_tensor(index: list[list[int]]) -> torch.Tensor:
    return torch.tensor(index, dtype=torch.int64).view(len(index), -1)


@given(choices())
def test_positions_and_counts(case):
    index, experts = case
    position_GS, count_GE = queue(as_tensor(index), experts)
    positions, counts = one_by_one(index, experts)
    assert position_GS.tolist() == positions
    assert count_GE.tolist() == counts
    assert position_GS.dtype == count_GE.dtype == torch.int64


@given(choices(), st.one_of(st.none(), st.integers(0, 6)))
def test_the_first_come_are_kept(case, capacity):
    index, experts = case
    plan = make_plan(as_tensor(index).unsqueeze(2), experts, capacity)
    kept_GS, count_GE = plan.kept_GSK[..., 0], count_choices(as_tensor(index).unsqueeze(2), experts)[:, 0]
    positions, counts = one_by_one(index, experts)
    room = 10**9 if capacity is None else capacity
    expected = [
        [e >= 0 and p < room for e, p in zip(*rows, strict=True)] for rows in zip(index, positions, strict=True)
    ]
    assert kept_GS.tolist() == expected
    assert count_GE.tolist() == counts, "counts are those before any is dropped"
    slots = [[group.count(expert) for expert in range(experts)] for group in kept_only(index, kept_GS.tolist())]
    assert slots == np.minimum(np.array(counts), room).tolist()


def kept_only(index: list[list[int]], kept: list[list[bool]]) -> list[list[int]]:
    return [[e for e, k in zip(*rows, strict=True) if k] for rows in zip(index, kept, strict=True)]
