"""A run that stops and goes on is the run that did not stop: in another layout to rounding, in the same bit for bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train.corpus import here, tiny_run, with_train, write_corpus

from megaswitch.checkpoint.choose import committed
from megaswitch.checkpoint.reader import Reader
from megaswitch.topology.config import LayoutConfig
from megaswitch.train.config import RunConfig
from megaswitch.train.loop import train

HALF, WHOLE = 3, 6

LAYOUTS: list[tuple[int, dict[str, Any], int, dict[str, Any]]] = [
    (1, {}, 2, {"ep": 2}),
    (2, {"pp": 2}, 1, {}),
    (2, {"tp": 2}, 2, {}),
    (4, {"pp": 2, "ep": 2}, 2, {"tp": 2, "etp": 2}),
    (2, {"tp": 2, "ep": 2}, 4, {"pp": 2, "tp": 2}),
    (4, {"ep": 4}, 2, {"pp": 2, "chunks": 1}),
]


def run(world, n: int, config: RunConfig, **layout: Any) -> None:
    config = replace(config, layout=LayoutConfig(**layout))
    assert world(n, lambda: train(config, here())) == [0] * n


def tensors(config: RunConfig) -> dict[str, torch.Tensor]:
    reader = Reader(committed(Path(config.run.dir) / "checkpoints")[0])
    assert reader.step == WHOLE
    return {name: reader.read_all(name) for name in reader.tensors}


def metrics(config: RunConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(config.run.dir) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="module")
def straight(tmp_path_factory, corpus, world) -> RunConfig:
    config = tiny_run(tmp_path_factory.mktemp("straight"), corpus)
    run(world, 1, config)
    return config


@pytest.mark.parametrize("first_world,first,second_world,second", LAYOUTS)
def test_another_layout(world, tmp_path, corpus, straight, first_world, first, second_world, second):
    config = tiny_run(tmp_path, corpus)
    run(world, first_world, with_train(config, stop_after=HALF), **first)
    assert len(metrics(config)) == HALF
    run(world, second_world, config, **second)
    expected, found = tensors(straight), tensors(config)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert (tensor - found[name]).abs().max() <= 1e-9 * tensor.abs().max(), name
    for line, other in zip(metrics(straight), metrics(config), strict=True):
        assert line.keys() == other.keys()
        for key in line.keys() - {"tokens_per_s", "memory_gb"}:
            assert other[key] == pytest.approx(line[key], rel=1e-9), (key, line["step"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
@pytest.mark.parametrize("n,layout", [(1, {}), (2, {"pp": 2}), (2, {"ep": 2})])
def test_same_layout_bit_for_bit(world, tmp_path, corpus, dtype, optimizer, n, layout):
    runs = []
    for name in ("straight", "stopped"):
        config = with_train(tiny_run(tmp_path / name, corpus), dtype=dtype)
        config = replace(config, optim=replace(config.optim, name=optimizer))
        if name == "stopped":
            run(world, n, with_train(config, stop_after=HALF), **layout)
        run(world, n, config, **layout)
        runs.append(tensors(config))
    straight, stopped = runs
    assert straight.keys() == stopped.keys()
    for name, tensor in straight.items():
        assert torch.equal(tensor, stopped[name]), name


def test_another_global_batch_keeps_the_order_of_samples(world, tmp_path, corpus):
    config = tiny_run(tmp_path, corpus)
    run(world, 1, with_train(config, stop_after=HALF))
    run(world, 2, with_train(config, global_batch=8))
    samples = [line["samples"] for line in metrics(config)]
    assert samples == [4, 8, 12, 20, 28, 36]
