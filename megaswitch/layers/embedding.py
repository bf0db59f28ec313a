"""Token embedding, the vocabulary split over tp.

B sequences, L tokens, D d_model, V this rank's part of the vocabulary.

Communication: it leaves a region.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from megaswitch.layers import initial
from megaswitch.layers.region import Region
from megaswitch.layers.weight_work import WeightWork, lookup
from megaswitch.model.config import ModelConfig
from megaswitch.params.derive import shard_range
from megaswitch.params.spec import ParamSpec

EMBEDDING = "embedding"


def embedding_specs(config: ModelConfig) -> list[ParamSpec]:
    """The table [vocabulary, d_model], shared by encoder and decoder."""
    shape = (config.vocab_size, config.d_model)
    return [ParamSpec(EMBEDDING, shape, initial.embedding(), "embed", shards=(("tp", 0),))]


class Embedding(nn.Module):
    """Rows of the table; each rank gives the ids of its part and zeros for the rest."""

    def __init__(
        self,
        config: ModelConfig,
        params: Mapping[str, nn.Parameter],
        region: Region,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`dtype` is the type of what comes out (None: the table's)."""
        super().__init__()
        self.table_VD, self.region = params[EMBEDDING], region
        self.dtype = dtype or self.table_VD.dtype
        self.first, _ = shard_range(config.vocab_size, region.axis.size, region.axis.rank)

    def forward(self, ids_BL: Tensor, work: WeightWork) -> Tensor:
        """[B, L, D], split along the sequence where the region says so."""
        if self.region.axis.size == 1:
            return lookup(self.table_VD, ids_BL, work).to(self.dtype)
        local_BL = ids_BL - self.first
        held_BL = (local_BL >= 0) & (local_BL < self.table_VD.shape[0])
        rows_BLD = lookup(self.table_VD, torch.where(held_BL, local_BL, 0), work).to(self.dtype)
        return self.region.leave(rows_BLD * held_BL.unsqueeze(-1).to(rows_BLD.dtype))
