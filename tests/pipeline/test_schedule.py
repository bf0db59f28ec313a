"""Schedules: complete, free of deadlock, in order, with the bubble and the memory that the literature promises.

p ranks, n chunks a rank, m micro-batches; v is the V placement.
"""

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaswitch.pipeline.actions import Action, Kind
from megaswitch.pipeline.schedule import forward_only, groups, make_schedule
from megaswitch.pipeline.simulate import Costs, check_order, simulate

F, B = Kind.FORWARD, Kind.BACKWARD
SIZES = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 12))
KINDS = st.sampled_from(["1f1b", "gpipe", "zb_h1", "zb_v"])


def run(schedule, n, forward=1.0, backward=2.0, *, v=False):
    """With stages that take equally long, I and W half a backward each."""
    costs = Costs(*([time] * len(schedule) * n for time in (forward, backward / 2, backward / 2)))
    return simulate(schedule, costs, v=v)


def text(actions):
    return " ".join(map(str, actions))


@settings(max_examples=300)
@given(KINDS, SIZES, st.data())
def test_any_size_is_complete_executable_and_in_order(kind, size, data):
    p, n, m = size
    n, v = (2 if kind == "zb_v" else n), kind == "zb_v" and p > 1
    schedule = make_schedule(kind, p, n, m)
    every = sorted((k, i, c) for k in ("FIW" if kind.startswith("zb") else "FB") for i in range(m) for c in range(n))
    for actions in schedule:
        assert sorted((a.kind.value, a.microbatch, a.chunk) for a in actions) == every
    check_order(schedule, n, v=v)
    times = st.lists(st.floats(0, 10), min_size=p * n, max_size=p * n)
    timeline = simulate(schedule, Costs(*(data.draw(times) for _ in range(3)), data.draw(st.floats(0, 5))), v=v)
    assert [[span.action for span in spans] for spans in timeline.spans] == schedule
    assert 0 <= timeline.bubble <= 1
    assert all(1 <= peak <= m * n for peak in timeline.peak_live)


def test_what_is_handed_out_is_the_callers_own():
    first = make_schedule("zb_h1", 2, 1, 3)
    first[0].clear()
    assert make_schedule("zb_h1", 2, 1, 3)[0]


@given(SIZES)
def test_forward_only(size):
    p, n, m = size
    schedule = forward_only(p, n, m)
    check_order(schedule, n)
    timeline = run(schedule, n)
    assert timeline.peak_live == [0] * p
    every = {Action(F, i, c) for i in range(m) for c in range(n)}
    assert all(set(actions) == every and len(actions) == len(every) for actions in schedule)
    assert timeline.makespan == (m * n + p - 1 if m >= p or n == 1 else (n - 1) * p + m + p - 1)


@given(st.integers(1, 8), st.integers(1, 24))
def test_forward_only_in_the_v_placement(p, m):
    schedule = forward_only(p, 2, m, v=True)
    check_order(schedule, 2, v=True)
    every = {Action(F, i, c) for i in range(m) for c in range(2)}
    assert all(set(actions) == every and len(actions) == len(every) for actions in schedule)
    assert run(schedule, 2, v=True).makespan == 2 * m + 2 * p - 2


@given(st.integers(1, 6), st.integers(1, 12))
def test_one_chunk_is_the_classical_1f1b(p, m):
    schedule = make_schedule("1f1b", p, 1, m)
    for rank, actions in enumerate(schedule):
        warm = min(p - rank - 1, m)
        expected = [Action(F, i, 0) for i in range(warm)]
        for i in range(m - warm):
            expected += [Action(F, warm + i, 0), Action(B, i, 0)]
        assert actions == expected + [Action(B, i, 0) for i in range(m - warm, m)]
    assert run(schedule, 1).peak_live == [min(p - rank, m) for rank in range(p)]


@given(
    st.sampled_from(["1f1b", "gpipe"]), st.integers(1, 6), st.integers(1, 12), st.sampled_from([(1.0, 1.0), (1.0, 2.0)])
)
def test_bubble_of_one_chunk(kind, p, m, costs):
    timeline = run(make_schedule(kind, p, 1, m), 1, *costs)
    assert timeline.bubble == pytest.approx((p - 1) / (m + p - 1))
    if kind == "gpipe":
        assert timeline.peak_live == [m] * p


def published_interleaved(p, v, m, rank):
    """The interleaved order for m a multiple of p: warm-up, then one forward and one backward in turn."""
    order = [(g * p + i, c) for g in range(m // p) for c in range(v) for i in range(p)]
    forwards = [Action(F, i, c) for i, c in order]
    backwards = [Action(B, i, v - 1 - c) for i, c in order]
    warm = min(2 * (p - rank - 1) + (v - 1) * p, m * v)
    steady = chain.from_iterable(zip(forwards[warm:], backwards, strict=False))
    return [*forwards[:warm], *steady, *backwards[m * v - warm :]]


@given(st.integers(2, 6), st.integers(2, 3), st.integers(1, 4))
def test_several_chunks_are_the_published_interleaved_1f1b(p, v, times):
    m = p * times
    schedule = make_schedule("1f1b", p, v, m)
    assert [text(actions) for actions in schedule] == [text(published_interleaved(p, v, m, r)) for r in range(p)]
    timeline = run(schedule, v, 1.0, 2.0)
    assert timeline.bubble == pytest.approx((p - 1) / (v * m + p - 1))
    limits = [min(2 * (p - r - 1) + (v - 1) * p + 1, m * v) for r in range(p)]
    assert timeline.peak_live == limits


@settings(max_examples=200)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 40))
def test_no_number_of_micro_batches_costs_more_than_it_must(p, v, m):
    timeline = run(make_schedule("1f1b", p, v, m), v, 1.0, 2.0)
    # Fewer micro-batches than ranks wait a whole round for their next chunk.
    steps = m * v + p - 1 if m >= p or v == 1 else p * v + m - 1
    assert timeline.makespan == 3.0 * steps
    assert max(timeline.peak_live) <= 2 * (p - 1) + (v - 1) * min(m, 2 * p - 1) + 1


@given(st.integers(1, 8), st.integers(1, 40))
def test_groups_are_the_micro_batches_in_order(p, m):
    found = groups(p, m)
    assert list(chain.from_iterable(found)) == list(range(m))
    assert all(min(p, m) <= len(group) < 2 * p for group in found)
    assert all(len(group) == p for group in found) or m % p or m < p
