"""The record of a run: config.toml, metrics.jsonl and TensorBoard's events say what happened."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train.corpus import here, tiny_run, with_train, write_corpus

from megaswitch.config.load import load
from megaswitch.model.presets import presets
from megaswitch.train.config import EvalConfig, LogConfig, RunConfig
from megaswitch.train.loop import train

KEYS = {
    *("step", "samples", "epochs", "loss", "nll", "aux_loss", "z_loss", "router_z_loss", "dropped", "grad_norm", "lr"),
    *("tokens_per_s", "skipped", "memory_gb"),
}
VALIDATION = {"valid_nll", "valid_content_nll"}
LAYERS = ("encoder.1", "decoder.1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, world) -> RunConfig:
    folder = tmp_path_factory.mktemp("run")
    config = with_train(tiny_run(folder / "run", write_corpus(folder / "corpus")), steps=4, stop_after=2)
    config = replace(config, eval=EvalConfig(every=2, batches=1), log=LogConfig(every=1, images_every=2))
    assert world(1, lambda: train(config, here())) == [0]
    whole = with_train(config, stop_after=0)
    assert world(1, lambda: train(whole, here())) == [0]
    return whole


@pytest.fixture(scope="module")
def events(finished) -> EventAccumulator:
    found = EventAccumulator(str(Path(finished.run.dir) / "tb"), size_guidance={"images": 0, "scalars": 0})
    return found.Reload()


def lines(config: RunConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(config.run.dir) / "metrics.jsonl").read_text().splitlines()]


def test_the_saved_configuration_is_the_complete_one(finished):
    path = Path(finished.run.dir) / "config.toml"
    assert load(RunConfig, presets(), ["--config", str(path)], "megaswitch train", "") == finished


def test_one_line_a_step_with_the_named_keys(finished):
    found = lines(finished)
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert [line["samples"] for line in found] == [4, 8, 12, 16]
    for line in found:
        assert set(line) == (KEYS | VALIDATION if line["step"] in (2, 4) else KEYS)


def test_the_loss_is_the_sum_of_its_parts(finished):
    for line in lines(finished):
        parts = line["nll"] + line["z_loss"] + line["aux_loss"] + line["router_z_loss"]
        assert line["loss"] == pytest.approx(parts, rel=1e-12)
        assert line["aux_loss"] > 0 and line["z_loss"] > 0
        assert 0 < line["dropped"] < 1


def test_scalars_agree_with_the_metrics(finished, events):
    by_step = {line["step"]: line for line in lines(finished)}
    for key in KEYS - {"step"}:
        for event in events.Scalars(f"train/{key}"):
            assert event.value == pytest.approx(by_step[event.step][key], rel=1e-6), key
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [e.step for e in events.Scalars("valid/nll")] == [2, 4]


def test_every_switch_layer_has_its_curves(events):
    tags = events.Tags()["scalars"]
    for layer in LAYERS:
        for kind in ("aux_loss", "dropped", "router_entropy", "load_min", "load_max", "load_entropy"):
            assert f"{kind}/{layer}" in tags
        for least, most in zip(events.Scalars(f"load_min/{layer}"), events.Scalars(f"load_max/{layer}"), strict=True):
            assert 0 <= least.value <= 1 <= most.value <= 4


def test_pictures_of_the_load(events):
    pictures = events.Images("expert_load")
    assert [p.step for p in pictures] == [1, 2, 4]
    assert pictures[0].width == 4 * 12 and pictures[0].height == 2 * 12
