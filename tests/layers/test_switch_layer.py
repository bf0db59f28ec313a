"""The Switch layer against a loop over tokens, at its extremes, over layouts, and what its losses do to the router."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from megaswitch.layers.context import Context
from megaswitch.layers.moe.choice import Places
from megaswitch.layers.moe.layer import SwitchLayer, switch_specs
from megaswitch.layers.moe.losses import attach, balance_loss, router_z_loss
from megaswitch.layers.moe.routers.switch import pick
from megaswitch.layers.moe.scores import Scores
from megaswitch.layers.moe.statistics import STATISTICS
from megaswitch.model.config import ModelConfig
from megaswitch.model.transformer import alone
from megaswitch.params.derive import local_box
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.grid import Grid, make_grid
from megaswitch.topology.topology import Topology, make_topology

CPU = torch.device("cpu")
NAME = "layer"
BATCH, LENGTH, WIDTH = 4, 6, 8
CONFIG = ModelConfig(
    d_model=WIDTH,
    d_ff=12,
    num_experts=4,
    encoder_length=LENGTH,
    capacity_factor=1.0,
    eval_capacity_factor=None,
    min_capacity=1,
    group_sequences=1,
)


def number(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole_params(config: ModelConfig) -> dict[str, Tensor]:
    return {s.name: number(*s.shape, seed=i) for i, s in enumerate(switch_specs(NAME, config))}


def layer_of(config: ModelConfig, topology: Topology) -> tuple[SwitchLayer, dict[str, nn.Parameter]]:
    """The layer over this place's parts of `whole_params`."""
    whole, grid, rank = whole_params(config), topology.grid, topology.rank
    params = {
        spec.name: nn.Parameter(whole[spec.name][local_box(spec, grid, rank).slices].clone())
        for spec in switch_specs(NAME, config)
    }
    return SwitchLayer(NAME, config, "encoder", params, topology), params


def context(topology: Topology, samples: Tensor, groups: float, training: bool = True) -> Context:
    return Context(
        topology=topology,
        training=training,
        seed=1,
        step=2,
        samples_B=samples,
        num_targets=1.0,
        num_groups={"encoder": groups, "decoder": 1.0},
    )


def serially(
    config: ModelConfig, x_BLD: Tensor, routed_BL: Tensor, training: bool = True
) -> tuple[Tensor, Tensor, dict[str, nn.Parameter]]:
    layer, params = layer_of(config, alone(CPU))
    batch = x_BLD.shape[0]
    groups = batch / config.group_sequences
    out_BLD, statistics = layer(x_BLD, routed_BL, context(layer.topology, torch.arange(batch), groups, training))
    return out_BLD, statistics, params


def by_loop(config: ModelConfig, x_BLD: Tensor, routed_BL: Tensor, slots: int) -> tuple[Tensor, int]:
    """Token by token: first come, first served inside a group; and how many were dropped."""
    params, size, out_BLD = whole_params(config), config.group_sequences, torch.zeros_like(x_BLD)
    router, wi, wo = (params[f"{NAME}.{n}"] for n in ("router", "experts.wi", "experts.wo"))
    dropped = 0
    for first in range(0, x_BLD.shape[0], size):
        used = [0] * config.num_experts
        for b in range(first, first + size):
            for token in range(x_BLD.shape[1]):
                if not routed_BL[b, token]:
                    continue
                probs = torch.softmax(x_BLD[b, token] @ router, 0)
                expert = int(probs.argmax())
                used[expert] += 1
                if used[expert] > slots:
                    dropped += 1
                    continue
                hidden = torch.relu(x_BLD[b, token] @ wi[expert])
                out_BLD[b, token] = probs[expert] * (hidden @ wo[expert])
    return out_BLD, dropped


def far(a: Tensor, b: Tensor) -> float:
    largest = float(a.detach().abs().max())
    return float((a - b).detach().abs().max()) / (largest or 1.0)


def every_token() -> Tensor:
    return torch.ones(BATCH, LENGTH, dtype=torch.bool)


def ragged() -> Tensor:
    """The second half of the first sequence is padding, and all of the last sequence."""
    routed = every_token()
    routed[0, LENGTH // 2 :], routed[-1] = False, False
    return routed


@pytest.mark.parametrize("routed", [every_token, ragged])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_equals_the_loop(routed, group):
    config = replace(CONFIG, group_sequences=group, capacity_factor=0.5)
    x, slots = number(BATCH, LENGTH, WIDTH, seed=9), round(0.5 * LENGTH * group / 4)
    out, statistics, _ = serially(config, x, routed())
    expected, dropped = by_loop(config, x, routed(), slots)
    assert dropped > 0 and far(expected, out) < 1e-14
    told = dict(zip(STATISTICS, statistics.tolist(), strict=False))
    assert (told["dropped"], told["routed"]) == (dropped, int(routed().sum()))
    assert statistics[len(STATISTICS) :].sum() == told["routed"]


@pytest.mark.parametrize(
    ("name", "changes", "slots"),
    [
        ("one slot", {"capacity_factor": 1e-9}, 1),
        ("no drop", {"capacity_factor": None}, BATCH * LENGTH),
        ("one expert", {"num_experts": 1}, LENGTH),
        ("more experts than tokens", {"num_experts": 64, "capacity_factor": 1.0}, 1),
    ],
)
def test_extremes(name, changes, slots):
    config, x = replace(CONFIG, **changes), number(BATCH, LENGTH, WIDTH, seed=9)
    out, statistics, _ = serially(config, x, every_token())
    expected, dropped = by_loop(config, x, every_token(), slots)
    assert far(expected, out) < 1e-14
    assert statistics[STATISTICS.index("dropped")] == dropped
    if name == "one expert":
        assert statistics[0].item() == pytest.approx(1.0) and dropped == 0


def test_one_token():
    config = replace(CONFIG, encoder_length=1)
    x, routed = number(1, 1, WIDTH, seed=9), torch.ones(1, 1, dtype=torch.bool)
    out, statistics, _ = serially(config, x, routed)
    assert far(by_loop(config, x, routed, 1)[0], out) < 1e-14
    assert statistics[STATISTICS.index("routed")] == 1


def test_padding_alone_gives_zeros_everywhere():
    x = number(BATCH, LENGTH, WIDTH, seed=9).requires_grad_()
    out, statistics, params = serially(CONFIG, x, torch.zeros(BATCH, LENGTH, dtype=torch.bool))
    assert not out.any() and not statistics.any()
    out.sum().backward()
    assert torch.isfinite(x.grad).all() and not x.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in params.values())


def test_dropped_tokens_are_zero_and_pass_no_gradient():
    config = replace(CONFIG, capacity_factor=1e-9, aux_loss_coef=0.0)
    x = number(BATCH, LENGTH, WIDTH, seed=9).requires_grad_()
    out, _, _ = serially(config, x, every_token())
    dropped = ~out.detach().any(-1)
    assert 0 < dropped.sum() < dropped.numel()
    out.sum().backward()
    assert not x.grad[dropped].any() and x.grad[~dropped].any(-1).all()


def test_evaluation_has_its_own_capacity_and_no_losses():
    x = number(BATCH, LENGTH, WIDTH, seed=9)
    out, statistics, params = serially(CONFIG, x, every_token(), training=False)
    assert far(by_loop(CONFIG, x, every_token(), BATCH * LENGTH)[0], out) < 1e-14
    assert statistics[STATISTICS.index("aux")] > 0, "the loss is told in evaluation too"
    (out * 0.0).sum().backward()
    assert not params[f"{NAME}.router"].grad.any(), "but attached in training alone"


def losses_at_the_top(config: ModelConfig, x_BLD: Tensor, routed_BL: Tensor, router: Tensor) -> Tensor:
    """Both auxiliary losses with their coefficients, from nothing but the router."""
    places = Places(torch.arange(BATCH).repeat_interleave(LENGTH), routed_BL.flatten(), BATCH)
    choice = pick(Scores(x_BLD.flatten(0, 1) @ router, places))
    index_GS = torch.where(routed_BL, choice.index_TK.view_as(routed_BL), -1)
    count_GE = torch.stack([torch.bincount(row[row >= 0], minlength=config.num_experts) for row in index_GS])
    aux = balance_loss(choice.balance[0].probs_GE, count_GE) / BATCH
    z = router_z_loss(choice.routed.log_z_T, places.group_T, places.real_T, count_GE) / BATCH
    return config.aux_loss_coef * aux + config.router_z_loss_coef * z


def test_attached_losses_are_those_added_at_the_top():
    with_losses = replace(CONFIG, aux_loss_coef=0.5, router_z_loss_coef=0.25)
    without = replace(CONFIG, aux_loss_coef=0.0)
    weight = number(BATCH, LENGTH, WIDTH, seed=3)
    x, again = (number(BATCH, LENGTH, WIDTH, seed=9).requires_grad_() for _ in range(2))
    out, _, params = serially(with_losses, x, ragged())
    (out * weight).sum().backward()
    out, _, expected = serially(without, again, ragged())
    top = losses_at_the_top(with_losses, again, ragged(), expected[f"{NAME}.router"])
    ((out * weight).sum() + top).backward()
    assert far(again.grad, x.grad) < 1e-14
    for name, parameter in params.items():
        assert far(expected[name].grad, parameter.grad) < 1e-14, name


def test_the_balance_loss_alone_moves_the_router():
    x = number(BATCH, LENGTH, WIDTH, seed=9)
    out, _, params = serially(CONFIG, x, every_token())
    (out * 0.0).sum().backward()
    assert params[f"{NAME}.router"].grad.abs().max() > 1e-6
    assert not params[f"{NAME}.experts.wi"].grad.any()


@pytest.mark.parametrize("scale", [0.0, 0.01, 3.0])
def test_attach_adds_a_scaled_loss_to_the_objective(scale):
    x, p = number(3).requires_grad_(), number(2, seed=1).requires_grad_()
    out = attach(x * 1.0, p.square().sum(), scale)
    assert torch.equal(out, x)
    (5.0 * out).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 5.0, dtype=torch.float64))
    assert torch.equal(p.grad, scale * 2.0 * p.detach()), "whatever the gradient that comes by"


def uniform_router(num_experts: int) -> tuple[Tensor, Tensor]:
    """Balanced choices of E tokens under even probabilities: their sums, and each expert once."""
    return torch.ones(1, num_experts), torch.ones(1, num_experts, dtype=torch.int64)


def test_the_balance_loss_is_1_when_all_are_wanted_alike_and_at_most_the_number_of_experts():
    probs, count = uniform_router(4)
    assert balance_loss(probs, count).item() == pytest.approx(1.0)
    one = torch.tensor([[0.0, 0.0, 4.0, 0.0]])
    assert balance_loss(one, one.long()).item() == pytest.approx(4.0)
    assert balance_loss(probs * 0, count * 0).item() == 0.0, "a group of padding"


def own_part(x: Tensor, grid: Grid, topology: Topology) -> Tensor:
    """A place's sequences, and its part of them where they are split."""
    x = x.chunk(grid.dp)[topology.dp.rank]
    return x.chunk(grid.tp, 1)[topology.tp.rank] if topology.sequence_parallel else x


@pytest.mark.parametrize(
    ("n", "layout"),
    [
        (2, {"tp": 2}),
        (2, {"tp": 2, "sequence_parallel": False}),
        (2, {"tp": 2, "etp": 2}),
        (2, {"tp": 2, "etp": 2, "sequence_parallel": False}),
        (2, {"ep": 2}),
        (4, {"tp": 2, "ep": 4}),
        (4, {"tp": 2, "ep": 2, "etp": 2}),
        (4, {"ep": 4}),
        (4, {"ep": 2}),
    ],
)
@pytest.mark.parametrize("activation", ["relu", "geglu"])
def test_no_layout_changes_anything(world, n, layout, activation):
    """With capacity that drops, jitter, and dropout of the experts' hidden units."""
    config = replace(CONFIG, activation=activation, jitter=0.1, expert_dropout=0.3, router_z_loss_coef=0.1)
    grid = make_grid(LayoutConfig(**layout), n)
    x, weight = number(BATCH, LENGTH, WIDTH, seed=9).requires_grad_(), number(BATCH, LENGTH, WIDTH, seed=3)
    expected, statistics, _ = serially(config, x, ragged())
    (expected * weight).sum().backward()

    def work():
        split = layout.get("sequence_parallel", True)
        topology = make_topology(grid, dist.get_rank(), CPU, sequence_parallel=split)
        layer, _ = layer_of(config, topology)
        own = own_part(x.detach(), grid, topology).clone().requires_grad_()
        samples = torch.arange(BATCH).chunk(grid.dp)[topology.dp.rank]
        routed = ragged().chunk(grid.dp)[topology.dp.rank]
        out, found = layer(own, routed, context(topology, samples, BATCH))
        (out * own_part(weight, grid, topology)).sum().backward()
        places = [own_part(t, grid, topology) for t in (expected.detach(), x.grad)]
        assert far(places[0], out) < 1e-13
        assert far(places[1], own.grad) < 1e-13
        return found

    found = torch.stack(world(n, work)).sum(0)
    assert far(statistics, found) < 1e-13
