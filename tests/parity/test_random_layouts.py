"""Layouts that nobody thought of, drawn at random, against one process. Long: `tests/run.sh --long`."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
from conftest import run_world
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from parity.harness import Outcome, assert_agree, outcome, small

from megaswitch.topology.config import LayoutConfig
from megaswitch.train.check import check
from megaswitch.train.config import RunConfig

NOISE = {"dropout": 0.1, "expert_dropout": 0.3, "jitter": 0.1}
MODELS: list[dict[str, Any]] = [
    {},
    NOISE,
    {"activation": "geglu", "tied_embeddings": False},
    {"router": "top2", "second_place_loss": True, "expert_dropout": 0.3},
    {"router": "ntlb", "router_choices": 3},
    {"router": "noisy_topk", "router_z_loss_coef": 0.01},
    {"capacity_factor": None, "router_priority": "probability"},
    {"expert_attention": True, "dropout": 0.1},
    {"route_padding": True, "decoder_group_sequences": 2, "group_sequences": 2},
]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, LayoutConfig]:
    """A world of 2, 4 or 8 and a layout of it."""
    world = draw(st.sampled_from([2, 4, 4, 8]))
    layout = LayoutConfig(
        tp=draw(st.sampled_from([1, 2, 4])),
        pp=draw(st.sampled_from([1, 2, 4])),
        ep=draw(st.sampled_from([1, 2, 4, 8])),
        etp=draw(st.sampled_from([1, 1, 2])),
        chunks=draw(st.sampled_from([None, None, 1, 2, 3, 4])),
        schedule=draw(st.sampled_from(["1f1b", "gpipe", "zb_h1", "zb_v"])),
        dispatch=draw(st.sampled_from(["variable", "variable", "padded"])),
        sequence_parallel=draw(st.booleans()),
    )
    return world, layout


@st.composite
def configurations(draw: st.DrawFn) -> tuple[int, RunConfig]:
    """A world and a configuration that it can train."""
    base = small(**draw(st.sampled_from(MODELS)))
    world, layout = draw(layouts())
    train = replace(
        base.train,
        micro_batch=draw(st.sampled_from([1, 2])),
        recompute=draw(st.sampled_from(["none", "selective", "full"])),
        decoder_recompute=draw(st.sampled_from(["same", "none", "selective", "full"])),
    )
    optim = replace(
        base.optim,
        zero=draw(st.booleans()),
        bucket_elements=draw(st.sampled_from([100, 2000, 1 << 25])),
        adafactor_rule=draw(st.sampled_from(["t5x", "mtf"])),
    )
    config = replace(base, layout=layout, train=train, optim=optim)
    assume(not check(config, world))
    return world, config


@lru_cache(maxsize=64)
def alone(config: RunConfig) -> Outcome:
    return outcome(run_world, 1, config)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(configurations())
def test_any_layout_equals_one_process(drawn: tuple[int, RunConfig]) -> None:
    world, config = drawn
    note(f"{world} ranks, {config.layout}")
    layout = {name: getattr(config.layout, name) for name in LayoutConfig.__dataclass_fields__}
    train = replace(config.train, recompute="none", decoder_recompute="same")
    serial = replace(config, layout=LayoutConfig(), train=train)
    assert_agree(alone(serial), outcome(run_world, world, config, **layout))
