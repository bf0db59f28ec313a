"""Every layout computes what one process computes: loss, gradients, norm, auxiliary losses, dropped share, weights.

float64, three steps, several micro-batches, capacity that drops tokens, padded samples; agreement to 1e-9.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import pytest
from conftest import run_world
from parity.harness import Outcome, assert_agree, outcome, small

from megaswitch.train.config import RunConfig

NOISE = {"dropout": 0.1, "expert_dropout": 0.3, "jitter": 0.1}


@dataclass(frozen=True)
class Case:
    """A layout on `world` ranks, and what differs from the base configuration."""

    world: int
    layout: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        parts = [self.layout, self.model, self.train, self.optim]
        return "-".join([str(self.world), *(f"{k}={v}" for part in parts for k, v in part.items())])

    def config(self) -> RunConfig:
        base = small(**self.model)
        return replace(base, train=replace(base.train, **self.train), optim=replace(base.optim, **self.optim))


CASES = [
    Case(2, {"tp": 2}),
    Case(2, {"tp": 2}, NOISE),
    Case(2, {"tp": 2, "sequence_parallel": False}, NOISE),
    Case(2, {"tp": 2, "etp": 2}, NOISE),
    Case(2, {"tp": 2, "ep": 2}, {"activation": "geglu", "tied_embeddings": False}),
    Case(2, {"pp": 2}),
    Case(2, {"pp": 2, "chunks": 1}, NOISE),
    Case(2, {"pp": 2, "chunks": 4}, {}, {"micro_batch": 2}),
    Case(4, {"pp": 4, "chunks": 1}),
    Case(2, {"pp": 2, "schedule": "gpipe"}, {"tied_embeddings": False}),
    Case(2, {"ep": 2}),
    Case(2, {"ep": 2}, {**NOISE, "group_sequences": 2}, {"micro_batch": 2}),
    Case(2, {}),
    Case(2, {}, {}, {}, {"zero": False}),
    Case(2, {}, {}, {}, {"name": "adamw", "lr": 0.01, "schedule": "constant", "weight_decay": 0.1, "clip": 0.5}),
    Case(4, {"ep": 4}, NOISE),
    Case(4, {"tp": 2, "pp": 2}, NOISE),
    Case(4, {"pp": 2, "ep": 2}),
    Case(4, {"pp": 2, "ep": 2}, {"capacity_factor": None, "router_z_loss_coef": 0.01}, {"recompute": "full"}),
    Case(4, {"tp": 2, "etp": 2, "ep": 2}, {}, {"recompute": "selective"}),
    Case(4, {"tp": 2, "ep": 2}, {"route_padding": True, "decoder_group_sequences": 2}, {"micro_batch": 2}),
    Case(4, {"ep": 2}, {}, {}, {"bucket_elements": 500}),
    Case(2, {"tp": 2, "ep": 2}, {"router": "top2", "second_place_loss": True, **NOISE}),
    Case(2, {"tp": 2}, {"router": "noisy_topk", "router_z_loss_coef": 0.01, **NOISE}),
    Case(2, {"tp": 2, "etp": 2}, {"router": "ntlb", "router_choices": 3}),
    Case(4, {"pp": 2, "ep": 2}, {"router": "noisy_topk", "router_choices": 3, "expert_dropout": 0.3}),
    Case(4, {"tp": 2, "ep": 4}, {"router_priority": "probability", "exploration": "sample"}),
    Case(4, {"ep": 4}, {"router": "top2", "router_priority": "probability", "aux_loss_reduction": "mean"}),
    Case(2, {"tp": 2, "ep": 2}, {"expert_attention": True, **NOISE}),
    Case(2, {"tp": 2, "sequence_parallel": False}, {"expert_attention": True, "router": "top2"}),
    Case(4, {"pp": 2, "tp": 2, "etp": 2}, {"expert_attention": True}, {"recompute": "full"}),
    Case(2, {"ep": 2}, {"router_dropout": 0.1, "fixed_capacity": 1}),
    Case(8, {"tp": 2, "pp": 2, "ep": 2}, NOISE),
    Case(8, {"tp": 2, "ep": 4}),
    Case(8, {"pp": 4, "ep": 2}),
    # backwards in two: weight gradients where a rank would else wait
    Case(2, {"pp": 2, "chunks": 1, "schedule": "zb_h1"}, NOISE),
    Case(2, {"pp": 2, "schedule": "zb_h1"}, {"tied_embeddings": False}, {"recompute": "full"}),
    Case(2, {"pp": 2, "schedule": "zb_v"}, NOISE),
    Case(4, {"pp": 4, "schedule": "zb_v"}, {"activation": "geglu"}, {"recompute": "selective"}),
    Case(4, {"pp": 2, "ep": 2, "schedule": "zb_v"}, {"router": "top2", "expert_dropout": 0.3}),
    Case(4, {"pp": 2, "tp": 2, "schedule": "zb_h1"}, {"router_z_loss_coef": 0.01}, {}, {"bucket_elements": 500}),
    Case(4, {"pp": 2, "schedule": "zb_v"}, {}, {"micro_batch": 2}, {"zero": False}),
    Case(8, {"tp": 2, "pp": 2, "ep": 2, "etp": 2, "schedule": "zb_v"}, {"expert_attention": True, **NOISE}),
    # every slot travels, filled or not
    Case(1, {"dispatch": "padded"}, NOISE),
    Case(2, {"ep": 2, "dispatch": "padded"}, NOISE),
    Case(4, {"tp": 2, "ep": 4, "dispatch": "padded"}, {"router": "ntlb", "router_choices": 3}),
    Case(4, {"tp": 2, "etp": 2, "ep": 2, "dispatch": "padded"}, {"router": "top2"}, {"recompute": "full"}),
    # recomputation by stack, many small buckets
    Case(2, {"ep": 2}, NOISE, {"recompute": "full", "decoder_recompute": "none"}),
    Case(4, {"pp": 2}, {}, {"recompute": "none", "decoder_recompute": "selective"}, {"bucket_elements": 100}),
]


@lru_cache(maxsize=64)
def alone(config: RunConfig) -> Outcome:
    """What one process computes, once for all layouts of a configuration."""
    return outcome(run_world, 1, config)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_layout_equals_one_process(case: Case) -> None:
    one = alone(case.config())
    assert min(one.scalars["dropped"]) > 0.01 or case.model.get("capacity_factor", 1) is None
    assert_agree(one, outcome(run_world, case.world, case.config(), **case.layout))


def test_noise_and_capacity_matter() -> None:
    """The cases above would not notice options that do nothing."""
    plain, noisy = outcome(run_world, 1, small()), outcome(run_world, 1, small(**NOISE))
    roomy = outcome(run_world, 1, small(capacity_factor=None))
    assert plain.scalars["loss"][0] != noisy.scalars["loss"][0] != roomy.scalars["loss"][0]
    assert max(roomy.scalars["dropped"]) == 0.0


def test_a_wrong_gradient_is_noticed() -> None:
    """The comparison fails when one weight is off by a billionth of the largest."""
    one = outcome(run_world, 1, small())
    name = next(iter(one.weights))
    off = one.weights[name].copy()
    off.flat[0] += 2e-9 * abs(off).max()
    with pytest.raises(AssertionError, match="weights"):
        assert_agree(one, replace(one, weights={**one.weights, name: off}))
