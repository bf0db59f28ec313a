"""What a resumed run may change, what it says of it, and what it refuses."""

import logging
from dataclasses import replace

import pytest
import torch
from parity.harness import RandomSource, small

from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.training import Progress, differences, save_training
from megaswitch.config.documents import to_dict
from megaswitch.topology.start import Place
from megaswitch.train.batches import read
from megaswitch.train.config import RunConfig
from megaswitch.train.resume import resume
from megaswitch.train.step import train_step
from megaswitch.train.system import System, build
from megaswitch.utils.errors import DataError, UserError

ALONE = Place(0, 1, 0, 1, torch.device("cpu"))


def changed(config: RunConfig, **values) -> RunConfig:
    for key, value in values.items():
        section, name = key.split("__")
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    return config


def test_differences_are_named_by_their_keys():
    one, other = {"a": {"b": 1, "c": [1, 2]}, "d": "x"}, {"a": {"b": 2, "c": [1, 2]}, "e": None}
    assert list(differences(one, other)) == ["a.b: 1, now 2", "d: x, now None"]
    assert list(differences(one, one)) == []
    assert list(differences(None, {"a": 1})) == [": None, now {'a': 1}"]


def test_of_two_configurations():
    config = small()
    other = changed(config, model__d_ff=32, layout__tp=2)
    assert sorted(differences(to_dict(config), to_dict(other))) == ["layout.tp: 1, now 2", "model.d_ff: 24, now 32"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Reader:
    """A checkpoint after two steps."""
    system = build(small(), ALONE)
    for step in range(2):
        train_step(system, read(system, RandomSource(system.config.model), 8 * step), step)
    root = tmp_path_factory.mktemp("checkpoints")
    state = to_dict(system.config)
    return Reader(
        save_training(root, Progress(2, 16), system.buckets, system.optimizer, state, "print", None), verify=True
    )


def start(saved: Reader, fingerprint: str = "print", **values) -> tuple[Progress, System]:
    system = build(changed(small(), **values), ALONE, initialise=False)
    return resume(system, saved, fingerprint), system


def test_the_same_run_goes_on_without_a_word(saved, caplog):
    with caplog.at_level(logging.WARNING):
        progress, system = start(saved)
    assert progress == Progress(2, 16) and not caplog.records
    assert any(p.any() for p in system.buckets.params.values())


@pytest.mark.parametrize(
    "values",
    [
        {"layout__tp": 1, "layout__sequence_parallel": False},
        {"train__recompute": "full", "train__stop_after": 5},
        {"optim__zero": False},
        {"log__every": 3, "eval__every": 7, "checkpoint__keep": 9},
    ],
)
def test_how_the_work_is_laid_out_is_free(saved, caplog, values):
    with caplog.at_level(logging.WARNING):
        start(saved, **values)
    assert not caplog.records


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"optim__lr": 0.5}, "optim.lr: None, now 0.5"),
        ({"train__steps": 20}, "train.steps: 10, now 20"),
        ({"train__global_batch": 16}, "train.global_batch: 8, now 16"),
        ({"model__dropout": 0.1}, "model.dropout: 0.0, now 0.1"),
        ({"model__capacity_factor": 2.0}, "model.capacity_factor: 1.0, now 2.0"),
    ],
)
def test_what_is_learned_from_then_on_may_change_and_is_said(saved, caplog, values, says):
    with caplog.at_level(logging.WARNING):
        start(saved, **values)
    assert [record.getMessage() for record in caplog.records] == [f"changed since the checkpoint: {says}"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model__d_ff": 32}, r"model\.d_ff: 24, now 32"),
        ({"model__num_experts": 4}, r"model\.num_experts: 8, now 4"),
        ({"model__encoder_length": 16}, r"model\.encoder_length: 12, now 16"),
        ({"optim__name": "adamw"}, r"optim\.name: adafactor, now adamw"),
        ({"optim__adafactor_rule": "mtf"}, r"optim\.adafactor_rule: t5x, now mtf"),
        ({"optim__min_dim_to_factor": 8}, r"optim\.min_dim_to_factor: 16, now 8"),
        ({"train__seed": 4}, r"train\.seed: 3, now 4"),
    ],
)
def test_another_model_or_run_is_refused(saved, values, says):
    with pytest.raises(DataError, match=says) as caught:
        start(saved, **values)
    assert "--checkpoint.resume=none" in str(caught.value)


def test_other_data_is_refused_unless_accepted(saved, caplog):
    with pytest.raises(UserError, match=r"other data.*--checkpoint\.data_mismatch=accept"):
        start(saved, fingerprint="another")
    with caplog.at_level(logging.WARNING):
        progress, _ = start(saved, fingerprint="another", checkpoint__data_mismatch="accept")
    assert progress == Progress(2, 16)
    assert "other data" in caplog.text
