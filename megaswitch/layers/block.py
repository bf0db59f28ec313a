"""One block of a stack: pre-norm residual sublayers.

B sequences, L tokens (this rank's part where the sequence is split), D d_model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from megaswitch.layers.attention import Attention, Kept, attention_specs
from megaswitch.layers.context import Context, row_drop
from megaswitch.layers.expert_attention import ExpertAttention, expert_attention_specs
from megaswitch.layers.feed_forward import FeedForward, feed_forward_specs
from megaswitch.layers.moe.layer import SwitchLayer, switch_specs
from megaswitch.layers.norm import Norm, norm_specs
from megaswitch.layers.region import region_of
from megaswitch.model.config import ModelConfig, Stack
from megaswitch.ops.bias import Bias
from megaswitch.ops.reference.dropout import RowDrop
from megaswitch.params.spec import ParamSpec
from megaswitch.topology.topology import Topology

_SPECS = {
    "attention": attention_specs,
    "cross_attention": attention_specs,
    "expert_attention": expert_attention_specs,
    "switch": switch_specs,
    "feed_forward": feed_forward_specs,
}
SPARSE = ("expert_attention", "switch")
"""Sublayers with experts, in the order of their statistics."""


def sublayers(config: ModelConfig, stack: Stack, layer: int) -> list[str]:
    """Names of a block's sublayers, in order."""
    sparse = config.is_sparse(stack, layer)
    first = "expert_attention" if sparse and config.expert_attention else "attention"
    last = "switch" if sparse else "feed_forward"
    return [first, last] if stack == "encoder" else [first, "cross_attention", last]


def block_specs(config: ModelConfig, stack: Stack, layer: int) -> list[ParamSpec]:
    """Parameters of a block: each sublayer's, and its norm's."""
    specs: list[ParamSpec] = []
    for sublayer in sublayers(config, stack, layer):
        name = f"{stack}.blocks.{layer}.{sublayer}"
        specs += norm_specs(f"{name}.norm", config)
        specs += _SPECS[sublayer](name, config)
    return specs


@dataclass
class BlockCache:
    """What a decoder block keeps between steps of a generation."""

    attention: Kept = field(default_factory=Kept)
    cross_attention: Kept = field(default_factory=Kept)


class Block(nn.Module):
    """Self-attention, cross-attention in the decoder, and a dense or Switch feed-forward layer."""

    def __init__(
        self, config: ModelConfig, stack: Stack, layer: int, params: Mapping[str, nn.Parameter], topology: Topology
    ) -> None:
        super().__init__()
        name, region = f"{stack}.blocks.{layer}", region_of(topology)
        self.name, self.rate, self.split = name, config.dropout, topology.sequence_parallel
        parts = sublayers(config, stack, layer)
        self.norms = nn.ModuleDict({s: Norm(f"{name}.{s}.norm", params) for s in parts})
        self.attention: Attention | ExpertAttention
        if parts[0] == "expert_attention":
            self.attention = ExpertAttention(f"{name}.expert_attention", config, stack, params, topology)
        else:
            self.attention = Attention(f"{name}.attention", config, params, region)
        self.cross_attention = (
            Attention(f"{name}.cross_attention", config, params, region) if stack == "decoder" else None
        )
        self.switch: SwitchLayer | None = None
        self.feed_forward: FeedForward | None = None
        if parts[-1] == "switch":
            self.switch = SwitchLayer(f"{name}.switch", config, stack, params, topology)
        else:
            self.feed_forward = FeedForward(f"{name}.feed_forward", config, params, region)

    def forward(
        self,
        x_BLD: Tensor,
        memory_BMD: Tensor | None,
        self_bias: Bias,
        cross_bias: Bias,
        routed_BL: Tensor,
        ctx: Context,
        cache: BlockCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The residual stream after the block, and the statistics of its sparse sublayers end to end, if any.

        With a `cache` the tokens follow those of earlier calls.
        """
        kept, kept_cross = (None, None) if cache is None else (cache.attention, cache.cross_attention)
        y_BLD, told = self._attend(x_BLD, self_bias, routed_BL, ctx, kept)
        if self.cross_attention is not None:
            x_BLD, normed = self._add(x_BLD, y_BLD, "attention", "cross_attention", ctx)
            y_BLD = self.cross_attention(normed, memory_BMD, cross_bias, ctx, kept_cross)
        before = "attention" if self.cross_attention is None else "cross_attention"
        if self.switch is not None:
            x_BLD, normed = self._add(x_BLD, y_BLD, before, "switch", ctx)
            y_BLD, statistics = self.switch(normed, routed_BL, ctx)
            told = statistics if told is None else torch.cat([told, statistics])
            return ctx.ops.residual(x_BLD, y_BLD, self._drop(y_BLD, "switch", ctx)), told
        assert self.feed_forward is not None
        x_BLD, normed = self._add(x_BLD, y_BLD, before, "feed_forward", ctx)
        y_BLD = self.feed_forward(normed, ctx)
        return ctx.ops.residual(x_BLD, y_BLD, self._drop(y_BLD, "feed_forward", ctx)), told

    def _add(self, x_BLD: Tensor, y_BLD: Tensor, of: str, to: str, ctx: Context) -> tuple[Tensor, Tensor]:
        """The residual stream with what sublayer `of` made, and sublayer `to`'s norm of it."""
        norm = self.norms[to]
        assert isinstance(norm, Norm)
        return norm.after(x_BLD, y_BLD, self._drop(y_BLD, of, ctx), ctx.ops)

    def _attend(
        self, x_BLD: Tensor, bias: Bias, routed_BL: Tensor, ctx: Context, kept: Kept | None
    ) -> tuple[Tensor, Tensor | None]:
        """Self-attention, and its statistics where its projections are experts."""
        if isinstance(self.attention, ExpertAttention):
            out: tuple[Tensor, Tensor]
            out = self.attention(self.norms["expert_attention"](x_BLD, ctx.ops), routed_BL, bias, ctx, kept)
            return out
        return self.attention(self.norms["attention"](x_BLD, ctx.ops), None, bias, ctx, kept), None

    def _drop(self, y_BLD: Tensor, sublayer: str, ctx: Context) -> RowDrop | None:
        return row_drop(y_BLD, self.rate, f"{self.name}.{sublayer}.out", ctx, split=self.split)
