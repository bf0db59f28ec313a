"""Losses of products with a split vocabulary, by blocks of tokens, against torch's over all logits at once."""

import pytest
import torch
import torch.distributed as dist
from ops.libraries import LIBRARIES, ROUNDING, load
from torch import Tensor, nn
from torch.nn import functional as F

from megaswitch.layers.cross_entropy import Goal, cross_entropy, tokens_of_block
from megaswitch.layers.weight_work import WeightWork
from megaswitch.ops.fused.backend import fused_ops
from megaswitch.ops.ops import BY_DEFINITION, Ops
from megaswitch.params.derive import shard_range
from megaswitch.topology.topology import Axis, make_axis

VOCABULARY, TOKENS, WIDTH, Z_LOSS = 11, 9, 6, 0.3
ALONE = Axis("tp", 0, (0,))


def inputs(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    weight_DV = torch.randn(WIDTH, VOCABULARY, generator=generator, dtype=torch.float64) * scale
    factor_N = torch.rand(TOKENS, generator=generator, dtype=torch.float64)
    return x_ND, weight_DV, torch.tensor([0, 10, 3, 4, 7, 8, 5, 2, 10]), factor_N


def by_torch(x_ND: Tensor, weight_DV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    logits_NV = x_ND @ weight_DV
    return F.cross_entropy(logits_NV, target_N, reduction="none"), Z_LOSS * logits_NV.logsumexp(-1).square()


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


def ops_of(library: str | None) -> Ops:
    return BY_DEFINITION if library is None else fused_ops(library, load(library))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("block", [1, 4, 9, 100])
@pytest.mark.parametrize("transposed", [False, True])
def test_equals_torchs_over_the_whole_vocabulary(world, n, scale, block, transposed):
    """11 ids over 2 or 3 ranks are uneven; logits of hundreds overflow an exponential that is not shifted."""
    x_ND, weight_DV, target_N, factor_N = inputs(scale)
    leaves = [x_ND.clone().requires_grad_(), weight_DV.clone().requires_grad_()]
    nll_N, z_N = by_torch(*leaves, target_N)
    objective = ((nll_N + z_N) * factor_N).sum()
    objective.backward()

    def work():
        axis = make_axis("tp", range(n), dist.get_rank())
        first, stop = shard_range(VOCABULARY, n, axis.rank)
        own, x = weight_DV[:, first:stop].contiguous(), x_ND.clone().requires_grad_()
        weight = nn.Parameter(own.t().contiguous() if transposed else own)
        goal = Goal(target_N - first, factor_N, Z_LOSS, axis, block)
        losses = cross_entropy(x, weight, goal, WeightWork(), transposed=transposed)
        assert not losses.nll_N.requires_grad and not losses.z_N.requires_grad
        (losses.objective * 2.0).backward()
        return losses.objective.detach(), losses.nll_N, losses.z_N, x.grad / 2, weight.grad / 2

    ranks = world(n, work)
    for found, nll, z, _, _ in ranks:
        assert far(objective.detach(), found) < 1e-14
        assert far(nll_N.detach(), nll) < 1e-13
        assert far(z_N.detach(), z) < 1e-14
    assert far(leaves[0].grad, sum(rank[3] for rank in ranks)) < 1e-13
    own = torch.cat([rank[4] for rank in ranks], 0 if transposed else 1)
    assert far(leaves[1].grad, own.t() if transposed else own) < 1e-13


@pytest.mark.parametrize("library", [None, *LIBRARIES])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_added_to_those_there_are(library, transposed):
    """By the forward already, which is why the objective may not be multiplied afterwards."""
    ops, (x_ND, weight_DV, target_N, factor_N) = ops_of(library), inputs()
    leaves = [x_ND.clone().requires_grad_(), weight_DV.clone().requires_grad_()]
    nll_N, z_N = by_torch(*leaves, target_N)
    ((nll_N + z_N) * factor_N).sum().backward()
    x, weight = x_ND.clone().requires_grad_(), nn.Parameter(weight_DV.t().contiguous() if transposed else weight_DV)
    weight.main_grad = torch.ones_like(weight)
    goal = Goal(target_N, factor_N, Z_LOSS, ALONE, 4)
    losses = cross_entropy(x, weight, goal, WeightWork(ops.products), ops, transposed=transposed)
    losses.objective.backward()
    assert far(leaves[0].grad, x.grad) < 1e-13 and weight.grad is None
    added = weight.main_grad - 1.0
    assert far(leaves[1].grad, added.t() if transposed else added) < 1e-13
    losses = cross_entropy(x, weight, goal, WeightWork(ops.products), ops, transposed=transposed)
    with pytest.raises(RuntimeError, match="factor_N"):
        (losses.objective * 2.0).backward()


@pytest.mark.parametrize("library", LIBRARIES)
def test_logits_of_narrow_operands_are_wide(library):
    ops, (x_ND, weight_DV, target_N, factor_N) = ops_of(library), inputs()
    x, weight = x_ND.bfloat16().requires_grad_(), nn.Parameter(weight_DV.bfloat16())
    wide = [x.detach().float().requires_grad_(), weight.detach().float().requires_grad_()]
    nll_N, z_N = by_torch(*wide, target_N)
    objective = ((nll_N + z_N) * factor_N.float()).sum()
    objective.backward()
    goal = Goal(target_N, factor_N.float(), Z_LOSS, ALONE, 4)
    losses = cross_entropy(x, weight, goal, WeightWork(ops.products), ops)
    losses.objective.backward()
    assert far(nll_N.detach(), losses.nll_N) < ROUNDING[torch.float32]
    assert losses.objective.dtype == torch.float32 and far(objective.detach(), losses.objective.detach()) < 1e-6
    assert far(wide[0].grad, x.grad.float()) < ROUNDING[torch.bfloat16]
    assert far(wide[1].grad, weight.grad.float()) < ROUNDING[torch.bfloat16]


def test_nothing_is_learnt_without_gradients():
    x_ND, weight_DV, target_N, factor_N = inputs()
    weight = nn.Parameter(weight_DV)
    weight.main_grad = torch.zeros_like(weight)
    with torch.no_grad():
        losses = cross_entropy(x_ND, weight, Goal(target_N, factor_N, Z_LOSS, ALONE, 4), WeightWork())
    assert not losses.objective.requires_grad and not weight.main_grad.any()


def test_no_more_logits_than_those_of_a_block():
    """The largest tensor that is made on the way, and how many tokens 64 MiB are."""
    tokens, columns = 64, 1000

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple | list) else [out]:
                Watch.most = max(Watch.most, each.numel() if isinstance(each, Tensor) else 0)
            return out

    x, weight = torch.randn(tokens, 4, requires_grad=True), nn.Parameter(torch.randn(4, columns))
    goal = Goal(torch.zeros(tokens, dtype=torch.int64), torch.ones(tokens), Z_LOSS, ALONE, 16)
    with Watch():
        cross_entropy(x, weight, goal, WeightWork()).objective.backward()
    assert Watch.most == 16 * columns
    assert tokens_of_block(912, 32128, torch.bfloat16) == tokens_of_block(912, 32128, torch.float32) == 456
    assert tokens_of_block(100, 32128, torch.float64) == 100 and tokens_of_block(3, 2**40, torch.float32) == 1
