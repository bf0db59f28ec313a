"""Compiled blocks in parallel layouts against plain ones in one process; nothing is compiled after the first step."""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import run_world
from parity.harness import Outcome, assert_agree, outcome, run_rank, small, whole
from torch._dynamo.utils import counters

from megaswitch.topology.config import LayoutConfig
from megaswitch.train.config import RunConfig

NOISE = {"dropout": 0.1, "expert_dropout": 0.3, "jitter": 0.1}
SHORT = {f"num_{kind}{stack}_layers": 1 for stack in ("encoder", "decoder") for kind in ("", "sparse_")}


@dataclass(frozen=True)
class Case:
    """A layout of `world` ranks and what is special about the configuration."""

    world: int
    layout: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=lambda: NOISE)
    train: dict[str, Any] = field(default_factory=dict)
    ops: str = "reference"

    @property
    def name(self) -> str:
        parts = self.layout | {k: v for k, v in self.model.items() if k not in NOISE} | self.train
        return "-".join([self.ops, *(f"{k}={v}" for k, v in parts.items())])

    def config(self, compiler: str, **model: Any) -> RunConfig:
        config = small(**self.model, **model)
        train = replace(config.train, compile=compiler, **self.train)
        return replace(config, train=train, ops=replace(config.ops, backend=self.ops))


CASES = [
    Case(1),
    Case(1, ops="cpp", model={**NOISE, "activation": "geglu"}),
    Case(1, {}, {}, {"micro_batch": 2}),
    Case(2, {"tp": 2}),
    Case(2, {"tp": 2, "sequence_parallel": False}, {**NOISE, "router": "top2"}, {"recompute": "selective"}),
    Case(2, {"pp": 2}, NOISE, {"recompute": "full"}),
    Case(2, {"pp": 2, "schedule": "zb_v"}),
    Case(2, {"pp": 2, "chunks": 1, "schedule": "zb_h1"}, {**NOISE, "activation": "geglu"}, {"recompute": "selective"}),
    Case(2, {"ep": 2}, {**NOISE, "capacity_factor": None}, {"recompute": "full", "decoder_recompute": "selective"}),
    Case(2, {"ep": 2, "dispatch": "padded"}, NOISE, {"recompute": "full"}),
    Case(2),
    Case(4, {"tp": 2, "ep": 4}, NOISE, {"micro_batch": 2, "recompute": "full"}),
    Case(4, {"tp": 2, "etp": 2, "ep": 2}, {**NOISE, "expert_attention": True}),
    Case(4, {"pp": 2, "ep": 2, "schedule": "zb_v"}, NOISE, {}, "cpp"),
]

QUICK = [Case(2, {"tp": 2, "ep": 2}, NOISE, {"recompute": "selective"}, "cpp"), Case(1, {}, {}, {"recompute": "full"})]
"""Those that have few graphs."""


@pytest.fixture(scope="module", autouse=True)
def tracer() -> None:
    """What tracing brings in takes seconds: once, before all forks."""
    torch.compile(torch.neg, backend="aot_eager")(torch.zeros(2))


@lru_cache(maxsize=64)
def alone(config: RunConfig) -> Outcome:
    return outcome(run_world, 1, config)


def compare(case: Case, compiler: str, tolerance: float = 1e-9, **model: Any) -> None:
    """Agreement with one process that compiles nothing and recomputes nothing."""
    plain = case.config("none", **model)
    one = alone(replace(plain, train=replace(plain.train, recompute="none", decoder_recompute="same")))
    config = replace(case.config(compiler, **model), layout=LayoutConfig(**case.layout))
    ranks = run_world(case.world, watched, config, limit=570.0)
    scalars, grads, weights = zip(*ranks, strict=True)
    assert_agree(one, Outcome(scalars[0], whole(grads), whole(weights)), tolerance)


def watched(config: RunConfig) -> Any:
    """A rank's run; what its first step compiled serves all others, and it leaves no processes."""
    run_rank(config, 1)
    graphs = counters["stats"]["unique_graphs"]
    told = run_rank(config)
    assert counters["stats"]["unique_graphs"] == graphs > 0, "a later step compiled something"
    assert not counters["graph_break"]
    assert psutil.Process().children() == []
    return told


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_traced_blocks_equal_plain_ones(case: Case) -> None:
    compare(case, "aot_eager", **SHORT)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_traced_blocks_equal_plain_ones_in_every_layout(case: Case) -> None:
    compare(case, "aot_eager")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of compiled code for the layouts, of which each then compiles what it alone has."""
    return tmp_path_factory.mktemp("inductor")


GENERATED = [
    Case(1, {}, NOISE, {"recompute": "full"}),
    Case(2, {"tp": 2}, {**NOISE, "activation": "geglu"}, {"recompute": "selective"}, "cpp"),
    Case(2, {"tp": 2, "ep": 2}, {**NOISE, "capacity_factor": None}),
    Case(2, {"pp": 2, "chunks": 1, "schedule": "zb_h1"}, NOISE, {"recompute": "selective"}),
    Case(2, {"ep": 2, "dispatch": "padded"}),
]
"""The first leaves what the others need in the cache, since no rank waits a minute for one that compiles."""


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", GENERATED, ids=lambda case: case.name)
def test_compiled_blocks_equal_plain_ones(case: Case, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    compare(case, "inductor", **SHORT)
