"""Experts in attention (paper appendix A): queries and shared keys and values come from a Switch layer.

Each expert has one hidden layer and two output matrices, one for queries and one for keys, which are the values
too. Queries are scaled by d_kv^-0.5. The paper found it to diverge in bfloat16.

B sequences, L tokens, D d_model, H this rank's heads, K d_kv, W all heads x d_kv.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from megaswitch.layers import initial
from megaswitch.layers.attention import AttentionCore, Kept
from megaswitch.layers.context import Context
from megaswitch.layers.linear import Linear, linear_spec
from megaswitch.layers.moe.experts import expert_specs
from megaswitch.layers.moe.layer import SwitchLayer
from megaswitch.layers.moe.router import router_specs
from megaswitch.layers.region import region_of
from megaswitch.model.config import ModelConfig, Stack
from megaswitch.ops.bias import Bias
from megaswitch.params.spec import ParamSpec
from megaswitch.topology.topology import Topology

_OUTPUTS = ("q_wo", "k_wo")


def expert_attention_specs(name: str, config: ModelConfig) -> list[ParamSpec]:
    """Router, experts with two outputs of all heads' width, and the dense output matrix o."""
    shape = (config.inner_dim, config.d_model)
    return [
        *router_specs(f"{name}.router", config),
        *expert_specs(f"{name}.experts", config, _OUTPUTS, config.inner_dim),
        linear_spec(f"{name}.o", shape, initial.projection(config, "o"), "attn", "row"),
    ]


class ExpertAttention(nn.Module):
    """Self-attention whose projections are experts."""

    def __init__(
        self, name: str, config: ModelConfig, stack: Stack, params: Mapping[str, nn.Parameter], topology: Topology
    ) -> None:
        super().__init__()
        self.region, self.width, self.d_kv = region_of(topology), config.inner_dim, config.d_kv
        self.projections = SwitchLayer(name, config, stack, params, topology, _OUTPUTS)
        self.core = AttentionCore(name, config, self.region)
        self.o = Linear(f"{name}.o", params)

    def forward(
        self, x_BLD: Tensor, routed_BL: Tensor, bias: Bias, ctx: Context, kept: Kept | None = None
    ) -> tuple[Tensor, Tensor]:
        """[B, L, D] to the same, and the Switch layer's statistics. A token that no expert serves asks for nothing
        and has zeros for key and value. With `kept` the tokens of earlier calls are seen too."""
        projected, statistics = self.projections(x_BLD, routed_BL, ctx)
        q_BLW, k_BLW = torch.split(self.region.enter(projected, ctx.work), self.width, -1)
        q, k = self._own_heads(q_BLW) * self.d_kv**-0.5, self._own_heads(k_BLW)
        k, v = (k, k) if kept is None else kept.extend(k, k)
        return self.region.leave(self.o(self.core(q, k, v, bias, ctx).flatten(2), ctx.work)), statistics

    def _own_heads(self, x_BLW: Tensor) -> Tensor:
        """[B, L, H, K]: this rank's heads of all."""
        axis = self.region.axis
        own = x_BLW.chunk(axis.size, -1)[axis.rank]
        return own.reshape(*own.shape[:-1], -1, self.d_kv)
