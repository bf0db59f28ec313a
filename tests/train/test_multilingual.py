"""A blend of languages trains, by temperature, with a validation curve for each; packed rows and tasks train too."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train.corpus import here, tiny_run, with_train, write_corpus

from megaswitch.data.config import DataConfig
from megaswitch.data.layout import dtype_for
from megaswitch.data.sidecar import TokenizerFacts
from megaswitch.data.writer import IndexedWriter
from megaswitch.train.config import EvalConfig, LogConfig, RunConfig
from megaswitch.train.loop import train

LANGUAGES = ("en", "de", "sw")


def run_of(folder: Path, data: DataConfig, **layout: int) -> RunConfig:
    config = with_train(tiny_run(folder / "run", folder, **layout), steps=6)
    return replace(config, data=data, eval=EvalConfig(every=3), log=LogConfig(every=1))


def lines(config: RunConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(config.run.dir) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def languages(tmp_path) -> DataConfig:
    for number, name in enumerate(LANGUAGES):
        write_corpus(tmp_path / name, documents=60 // (number + 1), seed=number)
        write_corpus(tmp_path / f"{name}-valid", documents=6, seed=10 + number)
    (tmp_path / "blend.txt").write_text("\n".join(LANGUAGES))
    valid = ",".join(f"{name}={tmp_path / name}-valid" for name in LANGUAGES)
    return DataConfig(train=f"@{tmp_path / 'blend.txt'}", valid=valid, temperature=3.3, split="1,0,0")


def test_one_validation_curve_a_language(tmp_path, languages, world):
    config = run_of(tmp_path, languages)
    assert world(1, lambda: train(config, here())) == [0]
    found = lines(config)
    curves = {f"{key}/{name}" for key in ("valid_nll", "valid_content_nll") for name in LANGUAGES}
    for line in found:
        assert {key for key in line if "/" in key} == (curves if line["step"] in (3, 6) else set())
    values = [found[-1][f"valid_nll/{name}"] for name in LANGUAGES]
    assert len(set(values)) == 3 and min(values) < found[-1]["valid_nll"] < max(values)
    assert [line["epochs"] for line in found] == sorted(line["epochs"] for line in found) and found[0]["epochs"] > 0
    events = EventAccumulator(str(Path(config.run.dir) / "tb"), size_guidance={"scalars": 0}).Reload()
    for name in LANGUAGES:
        assert [event.step for event in events.Scalars(f"valid/nll/{name}")] == [3, 6]


def test_packed_rows_train_alike_in_every_layout(tmp_path, world):
    write_corpus(tmp_path / "en")
    losses = []
    for number, layout in enumerate(({}, {"pp": 2}, {"tp": 2}, {"ep": 2})):
        data = DataConfig(train=str(tmp_path / "en"), split="1,0,0", packing=True)
        config = with_train(run_of(tmp_path / str(number), data, **layout), steps=2)
        world(2 if layout else 1, lambda config=config: train(config, here()))
        losses.append([line["loss"] for line in lines(config)])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-9)
    assert losses[0][0] != losses[0][-1]


def test_a_prepared_task_trains(tmp_path, world):
    with IndexedWriter(str(tmp_path / "copy"), dtype_for(160)) as writer:
        for first in range(3, 40):
            ids = list(range(first, first + 4))
            writer.add_documents(np.array(ids + ids[:2]), np.array([4, 2]), np.array([2]))
        writer.finish(TokenizerFacts("f" * 32, 60))
    config = run_of(tmp_path, DataConfig(train=f"task:{tmp_path / 'copy'}", split="0.8,0.2,0"))
    assert world(1, lambda: train(config, here())) == [0]
    assert lines(config)[-1]["valid_nll"] > 0
