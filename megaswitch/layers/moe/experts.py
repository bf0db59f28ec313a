"""The experts of one rank: a feed-forward network each, d_ff split over etp.

M rows sorted by expert, D d_model, F this rank's part of d_ff, X experts of this rank.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from megaswitch.layers import initial
from megaswitch.layers.context import Context
from megaswitch.layers.weight_work import grouped_product, hidden_units
from megaswitch.model.config import ModelConfig
from megaswitch.params.spec import ParamSpec
from megaswitch.topology.topology import Axis

FEED_FORWARD = ("wo",)
"""The output matrix of experts that are feed-forward networks."""


def expert_specs(
    name: str, config: ModelConfig, outputs: Sequence[str] = FEED_FORWARD, width: int | None = None
) -> list[ParamSpec]:
    """wi, wi_gate (GEGLU only) [experts, d_model, d_ff], and the output matrices [experts, d_ff, width], which
    share the hidden units; `width` is d_model unless given."""
    experts, wide, narrow = config.num_experts, config.d_model, config.d_ff
    into = ["wi", "wi_gate"] if config.activation == "geglu" else ["wi"]
    specs = [_spec(f"{name}.{w}", (experts, wide, narrow), config, 2) for w in into]
    return [*specs, *(_spec(f"{name}.{w}", (experts, narrow, width or wide), config, 1) for w in outputs)]


def _spec(name: str, shape: tuple[int, int, int], config: ModelConfig, etp_dim: int) -> ParamSpec:
    init = initial.expert(config, shape[1])
    return ParamSpec(name, shape, init, "experts", shards=(("ep", 0), ("etp", etp_dim)), expert=True)


class Experts(nn.Module):
    """relu(x wi_e) wo_e, or GEGLU, for the rows of each expert e; with etp, this rank's part of the sum."""

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        params: Mapping[str, nn.Parameter],
        etp: Axis,
        outputs: Sequence[str] = FEED_FORWARD,
    ) -> None:
        super().__init__()
        self.etp, self.rate = etp, config.hidden_dropout_of_experts
        self.wi_XDF = params[f"{name}.wi"]
        self.outputs = nn.ParameterList([params[f"{name}.{w}"] for w in outputs])
        self.wi_gate_XDF = params[f"{name}.wi_gate"] if config.activation == "geglu" else None

    def forward(self, x_MD: Tensor, counts: Sequence[int], noise_M: Tensor | None, ctx: Context) -> Tensor:
        """[M, widths of all outputs, side by side]; `noise_M` are the rows' random states, when the hidden units are
        dropped out."""
        hidden_MF = ctx.again("core", self._hidden, x_MD, counts, noise_M, ctx)
        parts = [grouped_product(hidden_MF, w_XFD, counts, ctx.work) for w_XFD in self.outputs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _hidden(self, x_MD: Tensor, counts: Sequence[int], noise_M: Tensor | None, ctx: Context) -> Tensor:
        hidden_MF = hidden_units(x_MD, self.wi_XDF, self.wi_gate_XDF, ctx.work, counts)
        if noise_M is None:
            return hidden_MF
        return ctx.ops.dropout(hidden_MF, noise_M, self.rate, self.etp.rank * hidden_MF.shape[1])
