"""What the options that save memory keep, and what they change of the numbers."""

from dataclasses import replace

import pytest
import torch
from parity.harness import RandomSource, outcome, place, small

from megaswitch.optim.optimizer import master_state
from megaswitch.topology.start import Place
from megaswitch.train.batches import read
from megaswitch.train.config import RunConfig
from megaswitch.train.step import compute_gradients, train_step
from megaswitch.train.system import System, build

HERE = Place(0, 1, 0, 1, torch.device("cpu"))


def config_of(dtype: str = "bfloat16", **optim) -> RunConfig:
    config = small()
    return replace(config, train=replace(config.train, dtype=dtype), optim=replace(config.optim, **optim))


def bytes_per_parameter(system: System) -> tuple[float, float, float]:
    """Of weights with masters, of gradients, and of AdamW's moments."""
    elements = sum(bucket.weights.numel() for bucket in system.buckets.buckets)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for b in system.buckets.buckets for t in (b.weights, b.master)}  # fmt: skip
    grads = sum(bucket.grads.nbytes for bucket in system.buckets.buckets)
    moments = sum(t.view.nbytes for t in system.optimizer.state())
    return sum(storages.values()) / elements, grads / elements, moments / elements


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (6, 4, 8)),
        ({"moment_dtype": "bfloat16"}, (6, 4, 4)),
        ({"grad_dtype": "bfloat16"}, (6, 2, 8)),
        ({"master": "only"}, (4, 4, 8)),
        ({"master": "only", "grad_dtype": "bfloat16", "moment_dtype": "bfloat16"}, (4, 2, 4)),
    ],
)
def test_bytes_of_a_parameter(options, expected):
    """peers.md's table: 18 bytes for everything in float32 beside bfloat16 weights, 10 for the leanest AdamW."""
    assert bytes_per_parameter(build(config_of(name="adamw", **options), HERE)) == expected


def train(options: dict, steps: int = 3) -> System:
    system = build(config_of(**options), HERE)
    source = RandomSource(system.config.model)
    for step in range(steps):
        train_step(system, read(system, source, 8 * step), step)
    return system


def masters(system: System) -> torch.Tensor:
    return torch.cat([t.view.flatten() for t in master_state(system.buckets)])


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
@pytest.mark.parametrize("options", [{"master": "only"}, {"grad_dtype": "bfloat16"}, {"moment_dtype": "bfloat16"}])
def test_training_is_nearly_the_same(name, options):
    """Masters stay in float32, so that the difference is one of rounding: far smaller than what was learned."""
    start = masters(build(config_of(), HERE))
    plain, lean = masters(train({"name": name})), masters(train({"name": name, **options}))
    assert lean.dtype == torch.float32
    moved = (plain - start).norm()
    assert moved > 0
    assert (plain - lean).norm() < 0.4 * moved, "Adafactor's first steps go by signs, which rounding can turn"


def test_narrow_gradients_travel_narrow(world):
    """What is reduced over ranks is bfloat16, and near what float32 gives."""

    def gradients(config: RunConfig):
        system = build(config, place())
        compute_gradients(system, read(system, RandomSource(config.model), 0), 0)
        assert all(bucket.grad_segment.dtype == bucket.grads.dtype for bucket in system.buckets.buckets)
        return torch.cat([bucket.wide_gradient().flatten() for bucket in system.buckets.buckets])

    wide, narrow = (world(2, gradients, config_of("float32", grad_dtype=t))[0] for t in ("float32", "bfloat16"))
    distance = float((wide - narrow).norm() / wide.norm())
    assert 1e-5 < distance < 1e-2


def test_in_float64_masters_only_is_what_there_is(world):
    """Weights that are wide already are their own masters."""
    config = config_of("float64", master="only")
    one, other = outcome(world, 2, config), outcome(world, 2, config_of("float64"))
    assert one.scalars == other.scalars
