"""Zero-bubble schedules: as short as they can be, within the memory they promise, beside torch's own.

p ranks, n chunks a rank, m micro-batches.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.pipelining import schedules as torchs

from megaswitch.pipeline.actions import Action, Kind
from megaswitch.pipeline.schedule import make_schedule
from megaswitch.pipeline.simulate import Costs, check_order, simulate

F, B, IN, W = Kind.FORWARD, Kind.BACKWARD, Kind.INPUT, Kind.WEIGHT
SORTS = {"FORWARD": F, "BACKWARD_INPUT": IN, "BACKWARD_WEIGHT": W, "FULL_BACKWARD": B}


def even(schedule, n, *, v=False, transfer=0.0):
    """F, I and W take a unit each."""
    return simulate(schedule, Costs(*([1.0] * len(schedule) * n for _ in range(3)), transfer), v=v)


def without_weights(actions, backward=IN):
    return [Action(backward if a.kind is IN else a.kind, a.microbatch, a.chunk) for a in actions if a.kind is not W]


@settings(max_examples=120)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 40))
def test_h1_waits_for_the_first_activation_alone_and_holds_no_more_than_1f1b(p, n, m):
    schedule, plain = make_schedule("zb_h1", p, n, m), make_schedule("1f1b", p, n, m)
    timeline, usual = even(schedule, n), even(plain, n)
    assert max(timeline.peak_live) <= max(usual.peak_live)
    if m % p == 0:
        assert timeline.peak_live == [n * p] * p
    if m >= p:
        assert timeline.makespan == 3 * m * n + p - 1
    if p > 1:
        assert timeline.bubble < usual.bubble


@given(st.integers(1, 8), st.integers(1, 40))
def test_h1_of_one_chunk_is_1f1b_with_the_weights_put_off(p, m):
    schedule = make_schedule("zb_h1", p, 1, m)
    assert [without_weights(actions, B) for actions in schedule] == make_schedule("1f1b", p, 1, m)


@given(st.integers(2, 8), st.integers(1, 40))
def test_v_waits_for_the_first_activation_alone_and_holds_as_many_everywhere(p, m):
    timeline = even(make_schedule("zb_v", p, 2, m), 2, v=True)
    assert timeline.peak_live == [min(2 * p, 2 * m)] * p
    if m >= p:
        assert timeline.makespan == 6 * m + p - 1
    for kind in ("1f1b", "gpipe"):
        assert timeline.bubble < even(make_schedule(kind, p, 2, m), 2).bubble
    assert timeline.bubble <= even(make_schedule("zb_h1", p, 2, m), 2).bubble


def test_a_v_holds_less_than_interleaved_chunks_do():
    for p in (2, 4, 8):
        v, interleaved = make_schedule("zb_v", p, 2, 4 * p), make_schedule("1f1b", p, 2, 4 * p)
        assert max(even(v, 2, v=True).peak_live) == 2 * p < max(even(interleaved, 2).peak_live) == 3 * p - 1


def test_small_ones_by_hand():
    assert [" ".join(map(str, actions)) for actions in make_schedule("zb_h1", 2, 1, 3)] == [
        "F0.0 F1.0 I0.0 W0.0 F2.0 I1.0 W1.0 I2.0 W2.0",
        "F0.0 I0.0 F1.0 I1.0 W0.0 F2.0 I2.0 W1.0 W2.0",
    ]
    assert [" ".join(map(str, actions)) for actions in make_schedule("zb_v", 2, 2, 1)] == [
        "F0.0 F0.1 I0.1 W0.1 I0.0 W0.0",
        "F0.0 F0.1 I0.1 I0.0 W0.1 W0.0",
    ]


def test_one_rank_never_waits():
    for kind in ("zb_h1", "zb_v"):
        for n in (1, 2, 3):
            assert even(make_schedule(kind, 1, n, 4), n).bubble == 0


def from_torch(kind, p, n, m):
    """A schedule of torch.distributed.pipelining as ours, made without the stages it would run."""
    made = object.__new__(kind)
    made.pp_group_size, made.n_local_stages, made.num_stages = p, n, p * n
    made._n_microbatches = m
    made.number_of_rounds = max(1, m // p)
    made.microbatches_per_round = m // made.number_of_rounds
    ranks = [made._calculate_single_rank_operations(rank) for rank in range(p)]
    return [[ours(a, p) for a in actions if a is not None] for actions in ranks]


def ours(action, p):
    return Action(SORTS[action.computation_type.name], action.microbatch_index, action.stage_index // p)


@given(st.integers(2, 8), st.integers(1, 30))
def test_v_passes_are_in_torchs_order_and_never_later(p, m):
    theirs = from_torch(torchs.ScheduleZBVZeroBubble, p, 2, m)
    schedule = make_schedule("zb_v", p, 2, m)
    check_order(theirs, 2, v=True)
    assert [without_weights(a) for a in schedule] == [without_weights(a) for a in theirs]
    mine, other = even(schedule, 2, v=True), even(theirs, 2, v=True)
    assert mine.makespan <= other.makespan
    assert max(mine.peak_live) <= max(2 * p, *other.peak_live)


@pytest.mark.parametrize(("p", "n", "m"), [(2, 1, 4), (2, 2, 4), (4, 2, 8), (4, 3, 16), (8, 2, 32), (3, 2, 9)])
def test_interleaved_ones_are_no_worse_than_torchs(p, n, m):
    theirs = even(from_torch(torchs.ScheduleInterleaved1F1B, p, n, m), n)
    mine = even(make_schedule("1f1b", p, n, m), n)
    assert mine.makespan <= theirs.makespan and max(mine.peak_live) <= max(theirs.peak_live)
    theirs = even(from_torch(torchs.ScheduleInterleavedZeroBubble, p, n, m), n)
    mine = even(make_schedule("zb_h1", p, n, m), n)
    assert mine.makespan <= theirs.makespan and max(mine.peak_live) <= max(theirs.peak_live)


@pytest.mark.parametrize("p", [2, 4, 8])
def test_messages_that_take_time_cost_no_more_than_with_torchs_order(p):
    """A tenth of a pass for each message: within a hundredth."""
    theirs = from_torch(torchs.ScheduleZBVZeroBubble, p, 2, 5 * p)
    mine = even(make_schedule("zb_v", p, 2, 5 * p), 2, v=True, transfer=0.1)
    assert mine.makespan <= 1.01 * even(theirs, 2, v=True, transfer=0.1).makespan
