"""Embedding over a vocabulary that tp does not divide, against the whole table."""

import pytest
import torch
from layers.vocabulary import BATCH, LENGTH, VOCABULARY, WIDTH, axis_here, config, far, number
from torch import Tensor, nn
from torch.nn import functional as F

from megaswitch.layers.embedding import EMBEDDING, Embedding
from megaswitch.layers.region import Region
from megaswitch.layers.weight_work import WeightWork
from megaswitch.params.derive import shard_range


def ids() -> Tensor:
    """Ids of all parts, the last one several times."""
    ids_BL = torch.arange(BATCH * LENGTH).view(BATCH, LENGTH)
    return torch.where(ids_BL % 5 == 4, VOCABULARY - 1, ids_BL)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("split", [True, False])
def test_embedding(world, n, split):
    table = number(VOCABULARY, WIDTH).requires_grad_()
    ids_BL = ids()
    whole, weight = F.embedding(ids_BL, table), number(BATCH, LENGTH, WIDTH, seed=1)
    (whole * weight).sum().backward()

    def work():
        axis = axis_here(n)
        first, stop = shard_range(VOCABULARY, n, axis.rank)
        own = nn.Parameter(table.detach()[first:stop].clone())
        out = Embedding(config(), {EMBEDDING: own}, Region(axis, split and n > 1))(ids_BL, WeightWork())
        place = axis.rank if split and n > 1 else 0
        (out * weight.chunk(n if split else 1, 1)[place]).sum().backward()
        return out.detach(), own.grad

    ranks = world(n, work)
    outs = [out for out, _ in ranks]
    found = torch.cat(outs, 1) if split else outs[0]
    assert torch.equal(found, whole.detach()) and (split or all(torch.equal(out, outs[0]) for out in outs))
    assert far(table.grad, torch.cat([grad for _, grad in ranks])) < 1e-14
