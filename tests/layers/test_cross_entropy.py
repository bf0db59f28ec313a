"""Cross-entropy with z-loss over a split vocabulary against torch's over the whole one."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from megaswitch.layers.cross_entropy import cross_entropy
from megaswitch.params.derive import shard_range
from megaswitch.topology.topology import make_axis

VOCABULARY, TOKENS, Z_LOSS = 11, 9, 0.3


def inputs(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(TOKENS, VOCABULARY, generator=generator, dtype=torch.float64) * scale
    weight_N = torch.rand(TOKENS, generator=generator, dtype=torch.float64)
    target_N = torch.tensor([0, 10, 3, 4, 7, 8, 5, 2, 10])
    return logits_NV, target_N, weight_N


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_equals_torchs_over_the_whole_vocabulary(world, n, scale):
    """11 ids over 2 or 3 ranks are uneven; logits of hundreds overflow an exponential that is not shifted."""
    logits_NV, target_N, weight_N = inputs(scale)
    leaf = logits_NV.clone().requires_grad_()
    nll_N = F.cross_entropy(leaf, target_N, reduction="none")
    z_N = Z_LOSS * leaf.logsumexp(-1).square()
    ((nll_N + z_N) * weight_N).sum().backward()

    def work():
        axis = make_axis("tp", range(n), dist.get_rank())
        first, stop = shard_range(VOCABULARY, n, axis.rank)
        own = logits_NV[:, first:stop].clone().requires_grad_()
        losses = cross_entropy(own, target_N, first, Z_LOSS, axis)
        (losses.loss_N * weight_N).sum().backward()
        assert torch.equal(own.detach(), logits_NV[:, first:stop]), "the logits were changed"
        assert not losses.nll_N.requires_grad and not losses.z_N.requires_grad
        return losses.loss_N.detach(), losses.nll_N, losses.z_N, own.grad

    ranks = world(n, work)
    for loss, nll, z, _ in ranks:
        assert far((nll_N + z_N).detach(), loss) < 1e-14
        assert far(nll_N.detach(), nll) < 1e-13
        assert far(z_N.detach(), z) < 1e-14
    assert far(leaf.grad, torch.cat([grad for *_, grad in ranks], 1)) < 1e-13
