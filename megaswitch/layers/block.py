"""One block of a stack: pre-norm residual sublayers.

B sequences, L tokens (this rank's part where the sequence is split), D d_model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from megaswitch.layers.attention import Attention, Kept, attention_specs
from megaswitch.layers.context import Context, dropout
from megaswitch.layers.feed_forward import FeedForward, feed_forward_specs
from megaswitch.layers.moe.layer import SwitchLayer, switch_specs
from megaswitch.layers.norm import Norm, norm_specs
from megaswitch.layers.region import region_of
from megaswitch.model.config import ModelConfig, Stack
from megaswitch.params.spec import ParamSpec
from megaswitch.topology.topology import Topology


def _sublayers(config: ModelConfig, stack: Stack, layer: int) -> list[str]:
    last = "switch" if config.is_sparse(stack, layer) else "feed_forward"
    return ["attention", last] if stack == "encoder" else ["attention", "cross_attention", last]


def block_specs(config: ModelConfig, stack: Stack, layer: int) -> list[ParamSpec]:
    """Parameters of a block: each sublayer's, and its norm's."""
    makers = {"switch": switch_specs, "feed_forward": feed_forward_specs}
    specs: list[ParamSpec] = []
    for sublayer in _sublayers(config, stack, layer):
        name = f"{stack}.blocks.{layer}.{sublayer}"
        specs += norm_specs(f"{name}.norm", config)
        specs += makers.get(sublayer, attention_specs)(name, config)
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
        sublayers = _sublayers(config, stack, layer)
        self.norms = nn.ModuleDict({s: Norm(f"{name}.{s}.norm", params) for s in sublayers})
        self.attention = Attention(f"{name}.attention", config, params, region)
        self.cross_attention = (
            Attention(f"{name}.cross_attention", config, params, region) if stack == "decoder" else None
        )
        self.switch: SwitchLayer | None = None
        self.feed_forward: FeedForward | None = None
        if sublayers[-1] == "switch":
            self.switch = SwitchLayer(f"{name}.switch", config, stack, params, topology)
        else:
            self.feed_forward = FeedForward(f"{name}.feed_forward", config, params, region)

    def forward(
        self,
        x_BLD: Tensor,
        memory_BMD: Tensor | None,
        self_bias: Tensor,
        cross_bias: Tensor | None,
        routed_BL: Tensor,
        ctx: Context,
        cache: BlockCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The residual stream after the block, and the Switch layer's statistics if it has one.

        With a `cache` the tokens follow those of earlier calls.
        """
        kept, kept_cross = (None, None) if cache is None else (cache.attention, cache.cross_attention)
        y = self.attention(self.norms["attention"](x_BLD), None, self_bias, ctx, kept)
        x_BLD = x_BLD + self._dropout(y, "attention", ctx)
        if self.cross_attention is not None:
            y = self.cross_attention(self.norms["cross_attention"](x_BLD), memory_BMD, cross_bias, ctx, kept_cross)
            x_BLD = x_BLD + self._dropout(y, "cross_attention", ctx)
        if self.switch is not None:
            y, statistics = self.switch(self.norms["switch"](x_BLD), routed_BL, ctx)
            return x_BLD + self._dropout(y, "switch", ctx), statistics
        assert self.feed_forward is not None
        y = self.feed_forward(self.norms["feed_forward"](x_BLD), ctx)
        return x_BLD + self._dropout(y, "feed_forward", ctx), None

    def _dropout(self, y_BLD: Tensor, sublayer: str, ctx: Context) -> Tensor:
        return dropout(y_BLD, self.rate, f"{self.name}.{sublayer}.out", ctx, split=self.split)
