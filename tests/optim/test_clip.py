"""The gradient norm counts each logical parameter once; clipping scales all of them."""

import pytest
import torch
import torch.distributed as dist

from megaswitch.comm.collectives import all_reduce_
from megaswitch.model.transformer import alone
from megaswitch.optim.buckets import Buckets
from megaswitch.optim.clip import clip_, gradient_squares, sum_of_squares
from megaswitch.params.spec import Init, ParamSpec
from megaswitch.topology.config import LayoutConfig
from megaswitch.topology.grid import make_grid
from megaswitch.topology.topology import make_topology

CPU = torch.device("cpu")


def spec(name: str, size: int, **more) -> ParamSpec:
    return ParamSpec(name, (size, 1), Init("ones"), "attn", **more)


def norm_of(buckets: Buckets) -> float:
    return all_reduce_(gradient_squares(buckets), buckets.topology.world).sqrt().item()


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize(
    ("n", "layout"),
    [(2, {"pp": 2}), (4, {"pp": 2, "tp": 2}), (4, {"pp": 2, "ep": 2}), (8, {"pp": 2, "tp": 2, "ep": 2})],
)
def test_replicated_and_shared_parameters_count_once(world, n, layout, zero):
    """Every rank brings ones; a gradient is then the number of ranks (and owners) over which it is summed."""
    grid = make_grid(LayoutConfig(**layout), n)

    def work():
        topology = make_topology(grid, dist.get_rank(), CPU)
        specs = {
            "shared": spec("shared", 8),
            f"own{topology.pp.rank}": spec(f"own{topology.pp.rank}", 4),
            "cut": spec("cut", 6, shards=(("tp", 0),)),
            "router": spec("router", 5, tp_partial="always"),
        }
        wi = ParamSpec("wi", (4, 1, 1), Init("ones"), "experts", shards=(("ep", 0),), expert=True)
        owners = {name: (0, 1) if name == "shared" else (topology.pp.rank,) for name in specs}
        buckets = Buckets(
            {**specs, "wi": wi}, {**owners, "wi": (topology.pp.rank,)}, topology, torch.float64, zero=zero
        )
        buckets.zero_grad()
        for bucket in buckets.buckets:
            for parameter in bucket.params.values():
                parameter.grad += 1.0
        buckets.reduce()
        return norm_of(buckets)

    dp, tp, edp = grid.dp, grid.tp, grid.edp
    on_each_stage = 4 * dp**2 + 6 * dp**2 + 5 * (dp * tp) ** 2 + 4 * edp**2
    expected = (8 * (2 * dp) ** 2 + 2 * on_each_stage) ** 0.5
    assert world(n, work) == pytest.approx([expected] * n, rel=1e-14)


def buckets_with(gradient: float) -> Buckets:
    specs = {"a": spec("a", 9), "b": spec("b", 7, decay=False)}
    buckets = Buckets(specs, dict.fromkeys(specs, (0,)), alone(CPU), torch.float64)
    for bucket in buckets.buckets:
        for parameter in bucket.params.values():
            parameter.grad.fill_(gradient)
    buckets.reduce()
    return buckets


@pytest.mark.parametrize(("limit", "expected"), [(0.0, 12.0), (1.0, 1.0), (20.0, 12.0), (12.1, 12.0)])
def test_clipping(limit, expected):
    """16 gradients of 3 have the norm 12; a limit of 0 is none."""
    buckets = buckets_with(3.0)
    norm = norm_of(buckets)
    assert norm == pytest.approx(12.0, rel=1e-15)
    clip_(buckets, norm, limit)
    assert norm_of(buckets) == pytest.approx(expected, rel=1e-6)
    if expected == 12.0:
        assert norm_of(buckets) == norm, "not even by a rounding"


def test_no_gradient_is_no_division_by_zero():
    buckets = buckets_with(0.0)
    clip_(buckets, norm_of(buckets), 1.0)
    assert norm_of(buckets) == 0.0


@pytest.mark.parametrize("size", [1, 1023, 1024, 300_001])
@pytest.mark.parametrize("types", [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-6)], ids=str)
def test_sums_of_squares(size, types):
    dtype, rounding = types
    x = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64).to(dtype)
    found = sum_of_squares(x, torch.promote_types(dtype, torch.float32))
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert found.item() == pytest.approx(x.double().square().sum().item(), rel=rounding)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(bad):
    x = torch.zeros(5000)
    x[4999] = bad
    assert not sum_of_squares(x, torch.float32).isfinite()
