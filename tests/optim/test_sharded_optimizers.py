"""Adafactor and AdamW over ZeRO's segments, tensor-parallel cuts and expert parallelism equal one process.

Gradients are skewed: rows and columns differ by orders of magnitude, so that a statistic over the wrong part of
a matrix shows.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from parity.harness import Slices, distance, slices_of, whole
from torch import Tensor

from megaswitch.comm.collectives import all_reduce_
from megaswitch.model.transformer import alone
from megaswitch.ops.registry import choose_ops
from megaswitch.optim.bucket import Bucket
from megaswitch.optim.buckets import Buckets
from megaswitch.optim.clip import clip_, gradient_squares
from megaswitch.optim.config import OptimConfig
from megaswitch.optim.make import make_optimizer
from megaswitch.optim.optimizer import master_state
from megaswitch.params.derive import local_box, partial_axes
from megaswitch.params.spec import Init, ParamSpec
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.grid import make_grid
from megaswitch.topology.topology import Topology, make_topology

CPU = torch.device("cpu")
NORMAL = Init("normal", 1.0)
STEPS = 3
SPECS = {
    spec.name: spec
    for spec in (
        ParamSpec("column", (9, 14), NORMAL, "attn", shards=(("tp", 1),)),
        ParamSpec("row", (14, 9), NORMAL, "attn", shards=(("tp", 0),)),
        ParamSpec("table", (13, 5), NORMAL, "embed", shards=(("tp", 0),)),
        ParamSpec("bias", (32, 4), NORMAL, "relbias", shards=(("tp", 1),), decay=False),
        ParamSpec("norm", (7,), NORMAL, "norms", decay=False, tp_partial="sequence_parallel"),
        ParamSpec("router", (9, 8), NORMAL, "router", tp_partial="always"),
        ParamSpec("wi", (8, 5, 6), NORMAL, "experts", shards=(("ep", 0), ("etp", 2)), expert=True),
        ParamSpec("wo", (8, 6, 5), NORMAL, "experts", shards=(("ep", 0), ("etp", 1)), expert=True),
        ParamSpec("wi_tall", (8, 6, 4), NORMAL, "experts", shards=(("ep", 0), ("etp", 2)), expert=True),
        ParamSpec("wo_wide", (4, 6, 5), NORMAL, "experts", shards=(("ep", 0), ("etp", 1)), expert=True),
    )
}
OWNERS = dict.fromkeys(SPECS, (0,))
OPTIMIZERS = {
    "adafactor": OptimConfig(name="adafactor", min_dim_to_factor=5),
    "adafactor unfactored": OptimConfig(name="adafactor", min_dim_to_factor=128),
    "adafactor mtf": OptimConfig(name="adafactor", adafactor_rule="mtf", min_dim_to_factor=5),
    "adafactor mtf unfactored": OptimConfig(name="adafactor", adafactor_rule="mtf", multiply_by_parameter_scale=False),
    "adamw": OptimConfig(name="adamw", weight_decay=0.1),
}
LAYOUTS = [
    (2, {}),
    (2, {"tp": 2}),
    (2, {"tp": 2, "sequence_parallel": False}),
    (2, {"ep": 2}),
    (3, {}),
    (4, {"tp": 2}),
    (4, {"tp": 2, "ep": 4}),
    (4, {"tp": 2, "ep": 2, "etp": 2}),
    (4, {"tp": 4, "ep": 2}),
    (4, {"ep": 2}),
    (4, {"ep": 4}),
]


def skewed(spec: ParamSpec, step: int) -> Tensor:
    """The whole gradient: element scales from 1e-3 to 1e3 by row and by column."""
    generator = torch.Generator().manual_seed(1000 * step + sorted(SPECS).index(spec.name))
    grad = torch.randn(spec.shape, generator=generator, dtype=torch.float64)
    for dim, size in enumerate(spec.shape):
        scale = 10.0 ** (3 * torch.rand(size, generator=generator, dtype=torch.float64) - 1.5)
        grad *= scale.view([-1 if d == dim else 1 for d in range(grad.dim())])
    return grad


def share(topology: Topology, spec: ParamSpec) -> float:
    """Which part of the gradient this rank brings: unequal ones that add up to 1 where it is summed."""
    part = 1.0
    for name in (spec.data_axis, *partial_axes(spec, topology.grid, topology.sequence_parallel)):
        axis = topology.axis(name)
        part *= (axis.rank + 1) / (axis.size * (axis.size + 1) / 2)
    return part


@dataclass(frozen=True)
class Outcome:
    """One rank's part of weights and state, the norms it was told, and its own copy of the weights."""

    weights: Slices
    state: Slices
    norms: list[float]
    copies: dict[str, NDArray[np.float64]]


def run(topology: Topology, config: OptimConfig, zero: bool, clip: float = 0.0) -> Outcome:
    """Some steps from the same weights with this rank's parts of the same gradients."""
    buckets = Buckets(SPECS, OWNERS, topology, torch.float64, zero=zero, bucket_elements=150)
    buckets.initialise(7)
    optimizer, norms = make_optimizer(buckets, config, choose_ops("auto", CPU)), []
    for step in range(1, STEPS + 1):
        buckets.zero_grad()
        for name, parameter in buckets.params.items():
            spec = SPECS[name]
            box = local_box(spec, topology.grid, topology.rank)
            parameter.grad += skewed(spec, step)[box.slices] * share(topology, spec)
        buckets.reduce()
        norm = all_reduce_(gradient_squares(buckets), topology.world).sqrt()
        norms.append(norm.item())
        clip_(buckets, norm.item(), clip)
        optimizer.step(0.01 * step, step)
        with torch.no_grad():
            buckets.publish()
    copies = {name: p.detach().numpy().copy() for name, p in buckets.params.items()}
    return Outcome(slices_of(master_state(buckets)), slices_of(optimizer.state()), norms, copies)


def run_here(n: int, layout: dict, config: OptimConfig, zero: bool, clip: float) -> Outcome:
    split = layout.get("sequence_parallel", True)
    grid = make_grid(LayoutConfig(**layout), n)
    return run(make_topology(grid, dist.get_rank(), CPU, sequence_parallel=split), config, zero, clip)


def assert_equal_parts(serial: Outcome, ranks: list[Outcome], n: int, layout: dict) -> None:
    for kind in ("weights", "state"):
        expected, found = whole([getattr(serial, kind)]), whole(getattr(r, kind) for r in ranks)
        assert expected.keys() == found.keys()
        wrong = {name: distance(expected[name], found[name]) for name in expected}
        assert max(wrong.values()) < 1e-12, (kind, wrong)
    grid, weights = make_grid(LayoutConfig(**layout), n), whole([serial.weights])
    for rank, outcome in enumerate(ranks):
        assert outcome.norms == pytest.approx(serial.norms, rel=1e-13)
        for name, copy in outcome.copies.items():
            box = local_box(SPECS[name], grid, rank)
            assert distance(weights[f"weight/{name}"][box.slices], copy) < 1e-12, name


@pytest.mark.parametrize(("n", "layout"), LAYOUTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_cut_changes_an_update(world, name, n, layout):
    serial = run(alone(CPU), OPTIMIZERS[name], zero=True)
    assert_equal_parts(serial, world(n, run_here, n, layout, OPTIMIZERS[name], True, 0.0), n, layout)


@pytest.mark.parametrize(("n", "layout"), [(3, {}), (4, {"tp": 2, "ep": 2, "etp": 2}), (4, {"ep": 2})])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nor_whole_masters_on_every_rank(world, name, n, layout):
    serial = run(alone(CPU), OPTIMIZERS[name], zero=True)
    assert_equal_parts(serial, world(n, run_here, n, layout, OPTIMIZERS[name], False, 0.0), n, layout)


@pytest.mark.parametrize(("n", "layout"), [(3, {}), (4, {"tp": 2, "ep": 2, "etp": 2})])
def test_no_cut_changes_a_clipped_update(world, n, layout):
    """AdamW, since Adafactor's first update hardly depends on a gradient's scale."""
    config, clip = OPTIMIZERS["adamw"], 10.0
    serial = run(alone(CPU), config, zero=True, clip=clip)
    assert min(serial.norms) > clip
    assert_equal_parts(serial, world(n, run_here, n, layout, config, True, clip), n, layout)


def round_here(optimizer: str, backend: str, zero: bool) -> tuple[Slices, dict[str, NDArray[np.float64]]]:
    """This rank's masters after some steps, and its weights in bfloat16."""
    topology = make_topology(make_grid(LayoutConfig(), 2), dist.get_rank(), CPU)
    buckets = Buckets(SPECS, OWNERS, topology, torch.bfloat16, zero=zero, bucket_elements=150)
    buckets.initialise(7)
    made = make_optimizer(buckets, OPTIMIZERS[optimizer], choose_ops(backend, CPU))
    for step in range(1, STEPS + 1):
        buckets.zero_grad()
        for bucket in buckets.buckets:
            bucket.grads.copy_(torch.randn(len(bucket.grads), generator=torch.Generator().manual_seed(step)))
        buckets.reduce()
        made.step(0.01, step, Bucket.begin_publish)
    buckets.await_weights(buckets.params)
    return slices_of(master_state(buckets)), {n: p.detach().double().numpy() for n, p in buckets.params.items()}


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize(("optimizer", "backend"), [("adamw", "auto"), ("adamw", "reference"), ("adafactor", "auto")])
def test_weights_are_the_masters_rounded(world, optimizer, backend, zero):
    """On every rank, whether the optimizer rounds its own or the bucket does."""
    ranks = world(2, round_here, optimizer, backend, zero)
    masters = whole(slices for slices, _ in ranks)
    for _, weights in ranks:
        for name, weight in weights.items():
            rounded = torch.from_numpy(masters[f"weight/{name}"]).float().bfloat16().double().numpy()
            np.testing.assert_array_equal(weight, rounded)


STATE_OF = {
    "adafactor": {"wi": ((8, 5), (8, 6)), "wi_tall": ((8, 6), (8, 4)), "wo_wide": ((4, 6), (4, 5))},
    "adafactor mtf": {"wi": ((8, 5), (5, 6)), "wi_tall": ((8, 4), (6, 4)), "wo_wide": ((4, 6), (4, 5))},
}
"""Global shapes of the means by row and by column: under "mtf" experts are factored where they are many."""


@pytest.mark.parametrize("name", STATE_OF)
def test_shapes_of_the_state_are_the_rules_alone(world, name):
    expected = {
        f"{kind}/{p}": s for p, pair in STATE_OF[name].items() for kind, s in zip(("row", "col"), pair, strict=True)
    }
    layout = {"tp": 2, "ep": 2, "etp": 2}
    ranks = [run(alone(CPU), OPTIMIZERS[name], zero=True), *world(4, run_here, 4, layout, OPTIMIZERS[name], True, 0.0)]
    for outcome in ranks:
        shapes = {state: shape for state, shape, _, _ in outcome.state if state in expected}
        assert shapes.items() <= expected.items()
    assert shapes_of_all(ranks[1:]) >= expected.keys()


def shapes_of_all(ranks: list[Outcome]) -> set[str]:
    return {state for outcome in ranks for state, *_ in outcome.state}


def test_the_two_rules_differ_in_experts_alone():
    """With every matrix factored by both. Each tensor of experts is skewed, so that means over all of them show."""
    t5x, mtf = (whole([run(alone(CPU), OPTIMIZERS[n], zero=True).weights]) for n in ("adafactor", "adafactor mtf"))
    differ = {name for name in t5x if distance(t5x[name], mtf[name]) > 1e-3}
    assert differ == {f"weight/{name}" for name, spec in SPECS.items() if spec.expert}


def test_the_norm_is_that_of_the_whole_gradients():
    expected = [
        torch.cat([skewed(spec, step).flatten() for spec in SPECS.values()]).norm().item()
        for step in range(1, STEPS + 1)
    ]
    assert run(alone(CPU), OPTIMIZERS["adamw"], zero=True).norms == pytest.approx(expected, rel=1e-14)
