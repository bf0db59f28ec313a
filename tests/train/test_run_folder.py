"""metrics.jsonl and config.toml."""

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from megaswitch.config.load import load
from megaswitch.model.presets import presets
from megaswitch.train.config import PlaceConfig, RunConfig
from megaswitch.train.run_folder import Metrics, open_folder
from megaswitch.utils.errors import CannotWriteError


def lines(folder: Path) -> list[dict]:
    return [orjson.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


def write(folder: Path, first_step: int, steps: range, loss: float = 0.1) -> None:
    metrics = Metrics(folder, first_step)
    for step in steps:
        metrics.write({"step": step, "loss": loss})
    metrics.close()


def test_numbers_keep_their_precision(tmp_path):
    write(tmp_path, 0, range(1, 2), loss=1 / 3)
    assert lines(tmp_path) == [{"step": 1, "loss": 1 / 3}]


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    metrics = Metrics(tmp_path, 0)
    metrics.write({"step": 1})
    assert lines(tmp_path) == [{"step": 1}]
    metrics.close()


def test_resuming_takes_back_what_came_after_the_checkpoint(tmp_path):
    write(tmp_path, 0, range(1, 7), loss=1.0)
    write(tmp_path, 4, range(5, 8), loss=2.0)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["loss"] for line in lines(tmp_path)] == [1.0] * 4 + [2.0] * 3


def test_a_fresh_start_forgets_all(tmp_path):
    write(tmp_path, 0, range(1, 4), loss=1.0)
    write(tmp_path, 0, range(1, 2), loss=2.0)
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize("tail", [b'{"step":4,"lo', b"\0\0\0\0", b'{"step":4,"loss":1.0', b"\xff\xfe"])
def test_half_a_line_of_a_killed_run_is_dropped(tmp_path, tail):
    write(tmp_path, 0, range(1, 4))
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(tail)
    write(tmp_path, 3, range(4, 5))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_nothing_is_left_aside(tmp_path):
    write(tmp_path, 0, range(1, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_configuration_is_complete_and_can_be_loaded(tmp_path):
    config = load(RunConfig, presets(), ["--model.preset=switch_tiny", f"--run.dir={tmp_path / 'a' / 'b'}"], "x", "y")
    folder = open_folder(config)
    assert folder == tmp_path / "a" / "b"
    assert load(RunConfig, presets(), ["--config", str(folder / "config.toml")], "x", "y") == config


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "taken").write_text("a file")
    config = replace(RunConfig(), run=PlaceConfig(dir=str(tmp_path / "taken")))
    with pytest.raises(CannotWriteError, match=r"taken: .*choose another with --run\.dir") as caught:
        open_folder(config)
    assert caught.value.exit_code == 73
