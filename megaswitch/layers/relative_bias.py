"""The relative-position bias: one table a stack, added in every self-attention of it.

R buckets, H this rank's heads, L tokens, S distances.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from megaswitch.layers import initial
from megaswitch.model.config import ModelConfig
from megaswitch.ops.reference.relative_buckets import relative_buckets
from megaswitch.params.spec import ParamSpec
from megaswitch.utils.precision import widen

NUM_BUCKETS = 32


def relative_bias_specs(name: str, config: ModelConfig) -> list[ParamSpec]:
    """The table [buckets, heads], drawn uniformly with variance scaled by the mean of both sides."""
    init, shape = initial.relative_bias(config, NUM_BUCKETS), (NUM_BUCKETS, config.num_heads)
    return [ParamSpec(name, shape, init, "relbias", shards=(("tp", 1),), decay=False)]


class RelativeBias(nn.Module):
    """Biases [H, S] by distance, key - query; attention adds them where it has the pairs."""

    def __init__(self, name: str, params: Mapping[str, nn.Parameter], bidirectional: bool) -> None:
        super().__init__()
        self.table_RH, self.bidirectional = params[name], bidirectional

    def forward(self, length: int) -> Tensor:
        """Biases in at least float32, for distances 1 - length .. length - 1."""
        distance_S = torch.arange(1 - length, length, device=self.table_RH.device)
        return widen(self.table_RH)[relative_buckets(distance_S, self.bidirectional)].t()
