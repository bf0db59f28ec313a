"""The simulator: times and peaks by hand, and what it says of schedules that cannot be carried out."""

import pytest

from megaswitch.pipeline.actions import Action, Kind
from megaswitch.pipeline.schedule import forward_only, make_schedule
from megaswitch.pipeline.simulate import Costs, ScheduleError, check_order, simulate

F, B, IN, W = Kind.FORWARD, Kind.BACKWARD, Kind.INPUT, Kind.WEIGHT


def even(num_stages):
    return Costs(*([1.0] * num_stages for _ in range(3)))


def times(timeline):
    return [[(s.start, s.end) for s in spans] for spans in timeline.spans]


def test_times_by_hand():
    costs = Costs([1.0, 3.0], [0.5, 3.0], [1.5, 1.0], transfer=0.5)
    timeline = simulate(make_schedule("1f1b", 2, 1, 1), costs)
    assert times(timeline) == [[(0.0, 1.0), (9.0, 11.0)], [(1.5, 4.5), (4.5, 8.5)]]
    assert timeline.bubble == pytest.approx(1 - 10 / 22)


def test_a_backward_in_two_sends_its_gradients_before_those_of_the_weights():
    costs = Costs([1.0, 3.0], [0.5, 3.0], [1.5, 1.0], transfer=0.5)
    timeline = simulate([[Action(kind, 0, 0) for kind in (F, IN, W)] for _ in range(2)], costs)
    assert times(timeline) == [[(0.0, 1.0), (8.0, 8.5), (8.5, 10.0)], [(1.5, 4.5), (4.5, 7.5), (7.5, 8.5)]]


@pytest.mark.parametrize(("first", "second"), [((B,), (IN, W)), ((IN, W), (B,))])
def test_ranks_may_differ_in_how_they_do_a_backward(first, second):
    schedule = [[Action(kind, 0, 0) for kind in (F, *kinds)] for kinds in (first, second)]
    check_order(schedule, 1)
    start = 4.0 if second == (B,) else 3.0
    assert times(simulate(schedule, even(2)))[0][1][0] == start


def test_nothing_travels_where_the_v_turns():
    """The last rank's two chunks follow each other; the first rank holds the first and the last stage."""
    costs = Costs([1.0] * 4, [1.0] * 4, [1.0] * 4, transfer=0.5)
    spans = simulate(forward_only(2, 2, 1, v=True), costs, v=True).spans
    assert [[(str(s.action), s.start) for s in rank] for rank in spans] == [
        [("F0.0", 0.0), ("F0.1", 4.0)],
        [("F0.0", 1.5), ("F0.1", 2.5)],
    ]


def test_what_is_held_by_hand():
    """From F to the end of W: putting weights' gradients off holds on to the activations."""
    forwards, inputs, weights = ([Action(kind, m, 0) for m in range(3)] for kind in (F, IN, W))
    late = [*forwards[:1], *inputs[:1], *forwards[1:2], *inputs[1:2], *forwards[2:], *inputs[2:], *weights]
    soon = [action for three in zip(forwards, inputs, weights, strict=True) for action in three]
    whole = [*forwards, *(Action(B, m, 0) for m in range(3))]
    peaks = [simulate([actions], even(1)).peak_live for actions in (late, soon, whole)]
    assert peaks == [[3], [1], [3]]
    assert simulate([late], even(1)).peak_bytes == [0]


def test_bytes_are_those_of_the_stage():
    schedule = make_schedule("zb_v", 2, 2, 1)
    costs = Costs(*([1.0] * 4 for _ in range(3)), live=[1000.0, 200.0, 30.0, 4.0])
    timeline = simulate(schedule, costs, v=True)
    assert timeline.peak_live == [2, 2]
    assert timeline.peak_bytes == [1004.0, 230.0]
    ordinary = simulate(make_schedule("1f1b", 2, 2, 1), costs)
    assert ordinary.peak_bytes == [1030.0, 204.0]


def test_a_deadlock_names_who_waits_for_what():
    first = [Action(F, 0, 0), Action(B, 0, 0), Action(F, 1, 0), Action(B, 1, 0)]
    second = [Action(F, 0, 0), Action(F, 1, 0), Action(B, 0, 0), Action(B, 1, 0)]
    with pytest.raises(ScheduleError) as caught:
        simulate([first, second], even(2))
    assert str(caught.value) == (
        "blocked: rank 0 at B0.0 waits for B0.0 of rank 1; rank 1 at F1.0 waits for F1.0 of rank 0"
    )


def test_a_missing_action_is_a_deadlock():
    schedule = make_schedule("gpipe", 2, 1, 2)
    schedule[0].remove(Action(F, 1, 0))
    with pytest.raises(ScheduleError, match=r"waits for F1\.0 of rank 0"):
        simulate(schedule, even(2))
    v = make_schedule("zb_v", 2, 2, 2)
    v[0].remove(Action(IN, 0, 1))
    with pytest.raises(ScheduleError, match=r"rank 1 at I0\.1 waits for I0\.1 of rank 0"):
        simulate(v, even(4), v=True)


def test_weights_come_after_their_own_inputs():
    with pytest.raises(ScheduleError, match=r"rank 0 at W0\.0 waits for I0\.0 of rank 0"):
        simulate([[Action(F, 0, 0), Action(W, 0, 0), Action(IN, 0, 0)]], even(1))


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


def test_routes_follow_the_placement():
    """Of the ordinary placement the V's order would be wrong, and the other way round."""
    with pytest.raises(ScheduleError):
        check_order(make_schedule("zb_v", 2, 2, 4), 2)
    swapped = make_schedule("zb_v", 2, 2, 2)
    at = [swapped[1].index(Action(IN, m, 1)) for m in range(2)]
    swapped[1][at[0]], swapped[1][at[1]] = swapped[1][at[1]], swapped[1][at[0]]
    with pytest.raises(ScheduleError, match="gradients from rank 0 to rank 1"):
        check_order(swapped, 2, v=True)
