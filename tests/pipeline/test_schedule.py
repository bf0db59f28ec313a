"""Schedules: complete, free of deadlock, in order, with the bubble and the memory that the literature promises."""

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaswitch.pipeline.actions import Action, Kind
from megaswitch.pipeline.schedule import forward_only, groups, make_schedule
from megaswitch.pipeline.simulate import Costs, ScheduleError, check_order, simulate

F, B = Kind.FORWARD, Kind.BACKWARD
SIZES = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 12))
KINDS = st.sampled_from(["1f1b", "gpipe"])


def run(schedule, chunks, forward=1.0, backward=1.0, transfer=0.0):
    stages = len(schedule) * chunks
    return simulate(schedule, Costs([forward] * stages, [backward / 2] * stages, [backward / 2] * stages, transfer))


def text(actions):
    return " ".join(map(str, actions))


@settings(max_examples=300)
@given(KINDS, SIZES, st.data())
def test_any_size_is_complete_executable_and_in_order(kind, size, data):
    p, v, m = size
    schedule = make_schedule(kind, p, v, m)
    every = sorted((k.value, i, c) for k in (F, B) for i in range(m) for c in range(v))
    for actions in schedule:
        assert sorted((a.kind.value, a.microbatch, a.chunk) for a in actions) == every
    check_order(schedule, v)
    costs = st.lists(st.floats(0, 10), min_size=p * v, max_size=p * v)
    timeline = simulate(schedule, Costs(*(data.draw(costs) for _ in range(3)), data.draw(st.floats(0, 5))))
    assert [[span.action for span in spans] for spans in timeline.spans] == schedule
    assert 0 <= timeline.bubble <= 1
    assert all(1 <= peak <= m * v for peak in timeline.peak_live)


@given(SIZES)
def test_forward_only(size):
    p, v, m = size
    schedule = forward_only(p, v, m)
    check_order(schedule, v)
    timeline = run(schedule, v)
    assert timeline.peak_live == [0] * p
    every = {Action(F, i, c) for i in range(m) for c in range(v)}
    assert all(set(actions) == every and len(actions) == len(every) for actions in schedule)
    assert timeline.makespan == (m * v + p - 1 if m >= p or v == 1 else (v - 1) * p + m + p - 1)


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


@given(KINDS, st.integers(1, 6), st.integers(1, 12), st.sampled_from([(1.0, 1.0), (1.0, 2.0)]))
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


def test_a_small_one_by_hand():
    assert [text(a) for a in make_schedule("1f1b", 2, 1, 3)] == [
        "F0.0 F1.0 B0.0 F2.0 B1.0 B2.0",
        "F0.0 B0.0 F1.0 B1.0 F2.0 B2.0",
    ]
    timeline = simulate(make_schedule("1f1b", 2, 1, 1), Costs([1.0, 3.0], [0.5, 3.0], [1.5, 1.0], transfer=0.5))
    assert [[(s.start, s.end) for s in spans] for spans in timeline.spans] == [
        [(0.0, 1.0), (9.0, 11.0)],
        [(1.5, 4.5), (4.5, 8.5)],
    ]
    assert timeline.bubble == pytest.approx(1 - 10 / 22)


def test_a_deadlock_names_who_waits_for_what():
    first = [Action(F, 0, 0), Action(B, 0, 0), Action(F, 1, 0), Action(B, 1, 0)]
    second = [Action(F, 0, 0), Action(F, 1, 0), Action(B, 0, 0), Action(B, 1, 0)]
    with pytest.raises(ScheduleError) as caught:
        run([first, second], 1)
    assert str(caught.value) == (
        "blocked: rank 0 at B0.0 waits for B0.0 of rank 1; rank 1 at F1.0 waits for F1.0 of rank 0"
    )


def test_a_missing_action_is_a_deadlock():
    schedule = make_schedule("gpipe", 2, 1, 2)
    schedule[0].remove(Action(F, 1, 0))
    with pytest.raises(ScheduleError, match=r"waits for F1\.0 of rank 0"):
        run(schedule, 1)


def test_messages_out_of_order_are_found():
    forward = forward_only(2, 1, 2)
    forward[1].reverse()
    with pytest.raises(ScheduleError, match="activations from rank 0 to rank 1"):
        check_order(forward, 1)
    schedule = make_schedule("gpipe", 2, 1, 2)
    schedule[0][2:] = schedule[0][:1:-1]
    with pytest.raises(ScheduleError, match="gradients from rank 1 to rank 0"):
        check_order(schedule, 1)
    with pytest.raises(ScheduleError, match="missing"):
        check_order([forward[0], forward[0][:1]], 1)
