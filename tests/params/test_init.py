"""Drawing weights: the same tensor whatever the cut, each expert by itself, and the right distributions."""

from math import sqrt

import pytest
import torch
from torch import Tensor

from megaswitch.params.boxes import Box
from megaswitch.params.derive import local_box
from megaswitch.params.init import initialise_
from megaswitch.params.spec import Init, ParamSpec
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.grid import make_grid
from megaswitch.utils.seeds import named_seed

TRUNCATED = 0.87962566103423978  # deviation of a standard normal cut off at two
COLUMN = ParamSpec("column", (12, 10), Init("truncated", 0.3), "attn", shards=(("tp", 1),))
TABLE = ParamSpec("table", (13, 4), Init("normal", 1.0), "embed", shards=(("tp", 0),))
NORM = ParamSpec("norm", (9,), Init("ones"), "norms")
EXPERTS = ParamSpec("wi", (8, 6, 4), Init("normal", 0.1), "experts", shards=(("ep", 0), ("etp", 2)), expert=True)
LAYOUTS = [(1, {}), (2, {"tp": 2}), (3, {"tp": 3}), (4, {"ep": 4}), (8, {"tp": 2, "etp": 2, "ep": 2}), (8, {"ep": 8})]


def draw(spec: ParamSpec, box: Box | None = None, seed: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    box = box or Box((0,) * len(spec.shape), spec.shape)
    out = torch.full(box.shape, float("nan"), dtype=dtype)
    initialise_(out, spec, box, seed)
    return out


@pytest.mark.parametrize(("n", "layout"), LAYOUTS)
@pytest.mark.parametrize("spec", [COLUMN, TABLE, NORM, EXPERTS], ids=lambda spec: spec.name)
def test_no_cut_changes_a_weight(spec, n, layout):
    whole, grid = draw(spec), make_grid(LayoutConfig(**layout), n)
    for rank in range(n):
        box = local_box(spec, grid, rank)
        assert torch.equal(draw(spec, box), whole[box.slices])


def test_an_expert_does_not_depend_on_how_many_there_are():
    fewer = ParamSpec("wi", (3, 6, 4), Init("normal", 0.1), "experts", expert=True)
    assert torch.equal(draw(fewer), draw(EXPERTS)[:3])


def test_experts_names_and_seeds_are_told_apart():
    experts = draw(EXPERTS)
    assert len({tuple(expert.flatten().tolist()) for expert in experts}) == 8
    other = ParamSpec("column2", COLUMN.shape, COLUMN.init, "attn")
    assert not torch.equal(draw(COLUMN), draw(other))
    assert not torch.equal(draw(COLUMN), draw(COLUMN, seed=6))
    assert torch.equal(draw(COLUMN), draw(COLUMN))


def test_the_type_only_rounds():
    drawn = draw(COLUMN)
    assert torch.equal(draw(COLUMN, dtype=torch.float64), drawn.double())
    assert torch.equal(draw(COLUMN, dtype=torch.bfloat16), drawn.bfloat16())


def test_torchs_own_generator_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    draw(EXPERTS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["normal", "truncated", "uniform"])
def test_mean_and_deviation(kind):
    std = 0.02
    drawn = draw(ParamSpec("large", (512, 512), Init(kind, std), "attn")).double()
    assert abs(drawn.mean().item()) < 4 * std / 512
    assert drawn.std().item() == pytest.approx(std, rel=0.01)
    most = {"truncated": 2 * std / TRUNCATED, "uniform": sqrt(3) * std, "normal": 6 * std}[kind]
    assert 0.9 * (most if kind != "normal" else 4 * std) < drawn.abs().max().item() <= most * (1 + 1e-6)


def test_ones():
    assert torch.equal(draw(NORM), torch.ones(9))


def test_named_seeds_never_change():
    """Literal values: if these differ, no checkpointed seed and no published run can be drawn again."""
    assert named_seed(0, "weight", "embedding") == 1781812285304356637
    assert named_seed(7, "noise", 3, "encoder.embed") == 5109811988122385475


def test_named_seeds_are_told_apart():
    parts = [(0, "ab", "c"), (0, "a", "bc"), (0, "abc"), (1, "ab", "c"), (0, "ab", "c", 0), (0, "ab", "c", 1)]
    seeds = {named_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
