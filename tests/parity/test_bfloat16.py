"""bfloat16 in many layouts: over 50 steps the loss stays as near to float32's as seeds are to each other."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from conftest import run_world
from numpy.typing import NDArray
from parity.harness import Sample, place, small

from megaswitch.model.config import ModelConfig
from megaswitch.topology.config import LayoutConfig
from megaswitch.train.batches import read
from megaswitch.train.config import RunConfig
from megaswitch.train.step import train_step
from megaswitch.train.system import build

STEPS, WINDOW, SEEDS = 50, 10, (1, 2, 3)


class CopySource:
    """Samples that can be learned: frequent ids, and targets that are the encoder's first ones."""

    def __init__(self, model: ModelConfig) -> None:
        self.model = model

    def batch(self, first: int, count: int) -> Sample:
        model, numbers = self.model, range(first, first + count)
        rows = [np.random.default_rng(7000 + number).zipf(1.5, model.encoder_length) for number in numbers]
        encoder = 2 + np.stack(rows) % (model.vocab_size - 2)
        targets = encoder[:, : model.decoder_length]
        decoder = np.concatenate([np.zeros((count, 1), np.int64), targets[:, :-1]], 1)
        return Sample(encoder, decoder, targets, np.arange(first, first + count))


def config_of(dtype: str, seed: int, optim: dict[str, Any] | None = None, **layout: Any) -> RunConfig:
    config = small()
    train = replace(config.train, dtype=dtype, seed=seed, steps=STEPS, micro_batch=2)
    rates = replace(config.optim, **{"lr": 0.02, "schedule": "constant", "warmup_steps": 5, **(optim or {})})
    return replace(config, train=train, optim=rates, layout=LayoutConfig(**layout))


def losses(config: RunConfig) -> list[float]:
    """One rank's loss at every step."""
    system, source = build(config, place()), CopySource(config.model)
    size = config.train.global_batch
    return [train_step(system, read(system, source, step * size), step).loss for step in range(STEPS)]


def windows(n: int, config: RunConfig) -> NDArray[np.float64]:
    """Mean loss of every ten steps."""
    return np.array(run_world(n, losses, config, limit=110.0)[0]).reshape(-1, WINDOW).mean(1)


@lru_cache(maxsize=1)
def by_seed() -> NDArray[np.float64]:
    """[seeds, windows]: float32 on one process."""
    return np.stack([windows(1, config_of("float32", seed)) for seed in SEEDS])


LEAN = {"master": "only", "grad_dtype": "bfloat16"}
CASES = [
    (1, {}, {}),
    (2, {}, {"pp": 2, "schedule": "zb_v"}),
    (4, {}, {"tp": 2, "ep": 2}),
    (2, {}, {"ep": 2, "dispatch": "padded"}),
    (4, LEAN, {"pp": 2, "ep": 2}),
    (2, {"name": "adamw", "lr": 0.002, "beta2": 0.95, "moment_dtype": "bfloat16"}, {"tp": 2}),
]


@pytest.mark.parametrize(("n", "optim", "layout"), CASES)
def test_the_loss_stays_within_the_spread_of_seeds(n, optim, layout):
    seeds = by_seed()
    spread, reference = seeds.max(0) - seeds.min(0), seeds[0]
    if optim.get("name") == "adamw":
        reference = windows(1, config_of("float32", SEEDS[0], {**optim, "moment_dtype": "float32"}))
    found = windows(n, config_of("bfloat16", SEEDS[0], optim, **layout))
    assert found[-1] < found[0] - 0.3, "something is learned"
    assert (np.abs(found - reference) <= spread).all(), (found, reference, spread)
