"""tools/draw_layout.py: valid SVG that shows every rank once, and errors for layouts that cannot be."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ("--pp", "2", "--tp", "2", "--ep", "2", "--world", "8")


def draw(path, *arguments):
    command = [sys.executable, str(ROOT / "tools" / "draw_layout.py"), *arguments, "--out", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def words(path):
    """Every text of the picture, in order."""
    return [node.text for node in ElementTree.parse(path).getroot().iter("{http://www.w3.org/2000/svg}text")]


def test_the_shipped_picture_is_what_the_tool_draws(tmp_path):
    assert draw(tmp_path / "layout.svg", *SHIPPED).returncode == 0
    assert (tmp_path / "layout.svg").read_text() == (ROOT / "launch" / "layout.svg").read_text()


@pytest.mark.parametrize(
    "arguments,world,copies",
    [
        (("--world", "1"), 1, (1, 1)),
        (SHIPPED, 8, (4, 4)),
        (("--tp", "4", "--etp", "4", "--ep", "2", "--world", "8"), 8, (2, 1)),
        (("--pp", "4", "--chunks", "1", "--ep", "8", "--world", "32"), 32, (32, 4)),
    ],
)
def test_each_rank_and_each_copy_once(tmp_path, arguments, world, copies):
    path = tmp_path / "layout.svg"
    done = draw(path, *arguments)
    assert done.returncode == 0, done.stderr
    seen = words(path)
    assert [w for w in seen if w.startswith("rank ")] == [f"rank {i}" for i in range(world)]
    dense, experts = (sum(bool(re.fullmatch(p, w)) for w in seen) for p in (r"dp \d+: .*", r"edp \d+: .*"))
    assert (dense, experts) == copies


def test_places_of_a_rank(tmp_path):
    assert draw(tmp_path / "layout.svg", *SHIPPED).returncode == 0
    seen = words(tmp_path / "layout.svg")
    at = seen.index("rank 6")
    assert seen[at + 1 : at + 3] == ["dp 1, tp 0", "edp 1, ep 0"]
    assert "stages 1, 3" in seen  # two chunks: a stage of the encoder and one of the decoder
    assert draw(tmp_path / "v.svg", *SHIPPED, "--schedule", "zb_v").returncode == 0
    assert {"stages 0, 3", "stages 1, 2"} < set(words(tmp_path / "v.svg"))


@pytest.mark.parametrize(
    "arguments,said",
    [
        (("--tp", "3", "--world", "8"), "cannot be divided"),
        (("--ep", "16", "--world", "8"), "does not divide"),
        (("--world", "512"), "cannot be read"),
        (("--world", "0"), "must be 1 or more"),
    ],
)
def test_impossible_layouts_draw_nothing(tmp_path, arguments, said):
    done = draw(tmp_path / "layout.svg", *arguments)
    assert done.returncode == 64 and said in done.stderr
    assert not (tmp_path / "layout.svg").exists()


def test_help_and_a_folder_that_is_not_there(tmp_path):
    done = draw(tmp_path / "x.svg", "--help")
    assert done.returncode == 0 and "example:\n  python tools/draw_layout.py " in done.stdout
    assert draw(tmp_path / "no" / "x.svg", "--world", "2").returncode == 73
