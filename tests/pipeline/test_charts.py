"""Schedules as text and as pictures: every action, where it belongs."""

import re
import sys
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaswitch.pipeline.chart import Chart
from megaswitch.pipeline.picture import picture
from megaswitch.pipeline.schedule import make_schedule
from megaswitch.pipeline.simulate import Costs, simulate
from megaswitch.pipeline.text import axis, gantt, round_step
from megaswitch.utils.errors import UserError


def chart(kind="1f1b", p=2, m=2, time=1.0, parts=("encoder", "decoder")):
    n = len(parts)
    costs = Costs(*([time] * p * n for _ in range(3)))
    timeline = simulate(make_schedule(kind, p, n, m), costs, v=kind == "zb_v" and p > 1)
    return Chart(kind, m, timeline, [list(parts)] * p)


def lines(one, width):
    return [line.plain for line in gantt(one, width, one.timeline.makespan)]


def test_text_by_hand():
    """A unit is four columns: F and f are one, B and b two."""
    assert lines(chart("1f1b", 2, 1), 9 + 4 * 12) == [
        "rank 0 |F0--    f0--            b0------        B0------|",
        "rank 1 |    F0--    f0--b0------        B0------        |",
        "        0                   5                   10",
    ]


def test_what_has_no_room_is_a_letter():
    one = chart("zb_h1", 1, 12, parts=("encoder",))
    wide, narrow = lines(one, 9 + 36 * 3)[0], lines(one, 9 + 36 * 2)[0]
    assert "F9-I9-W9-F10I10W10" in wide and "F9I9W9F-I-W-" in narrow


@given(st.sampled_from(["1f1b", "gpipe", "zb_h1", "zb_v"]), st.integers(1, 4), st.integers(1, 9), st.integers(1, 200))
def test_rows_are_even_and_blanks_are_waiting(kind, p, m, width):
    one = chart(kind, p, m)
    *rows, _ = lines(one, width)
    assert len(rows) == p and {len(row) for row in rows} == {max(width, 19)}
    if width > 150:
        blank = sum(row[8:-1].count(" ") for row in rows) / sum(len(row[8:-1]) for row in rows)
        assert abs(blank - one.timeline.bubble) < 0.1


def test_the_axis_has_round_numbers_at_their_columns():
    assert axis(40.0, 40) == "0         10        20        30        40"
    assert axis(10.0, 40) == "0                   5                   10"
    assert axis(0.0, 40) == ""


@given(st.floats(1e-6, 1e9))
def test_steps_are_round_and_not_too_small(least):
    step = round_step(least)
    assert step >= least * (1 - 1e-6) and step <= 2.5 * least * (1 + 1e-6)
    assert f"{step:e}"[0] in "125"


def paths(svg):
    """Fill colours of all shapes, and all texts."""
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    styles = [node.get("style", "") for node in root.iter(f"{space}path")]
    fills = [found[1] for style in styles if (found := re.search(r"fill: (#\w+)", style))]
    return fills, ["".join(node.itertext()).strip() for node in root.iter(f"{space}text")]


def test_a_picture_has_a_bar_for_every_action():
    fills, texts = paths(picture([chart("zb_v", 3, 4)], "the note", "svg"))
    for colour in ("#8fbce6", "#2f6db0", "#cfe3f6", "#f7bd7f", "#c4600f", "#fde4c8"):
        assert fills.count(colour) == 3 * 4 + 1, "and one in the legend"
    assert "ZB-V: 3 ranks x 2 chunks, 4 micro-batches, bubble 7.7%" in texts and "the note" in texts
    assert [sum(text == str(m) for text in texts) for m in (1, 3)] == [18, 18]
    assert texts.count("holds 6") == 3 and {f"rank {rank}" for rank in range(3)} <= set(texts)
    assert "encoder: backward of inputs" in texts and "encoder: backward" not in texts


def test_a_picture_of_several_is_to_one_scale():
    fills, texts = paths(picture([chart("1f1b"), chart("gpipe", parts=("both",))], "", "svg"))
    assert sum("bubble" in text for text in texts) == 2
    assert fills.count("#2a5c25") == 2 * 2 + 1 and "encoder and decoder: backward" in texts


def test_pictures_do_not_change():
    assert picture([chart()], "", "svg") == picture([chart()], "", "svg")


def test_png():
    assert picture([chart()], "", "png").startswith(b"\x89PNG\r\n")


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        picture([chart()], "", "svg")
