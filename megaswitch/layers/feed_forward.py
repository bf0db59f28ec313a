"""The dense feed-forward network, d_ff split over tp.

B sequences, L tokens, D d_model, F this rank's part of d_ff.

Communication: one region entered and left.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from megaswitch.layers import initial
from megaswitch.layers.context import Context, dropout
from megaswitch.layers.linear import Linear, linear_spec
from megaswitch.layers.region import Region
from megaswitch.layers.weight_work import hidden_units
from megaswitch.model.config import ModelConfig
from megaswitch.params.spec import ParamSpec


def feed_forward_specs(name: str, config: ModelConfig) -> list[ParamSpec]:
    """wi, wi_gate (GEGLU only) and wo."""
    wide, narrow = (config.d_model, config.d_ff), (config.d_ff, config.d_model)
    into = ["wi", "wi_gate"] if config.activation == "geglu" else ["wi"]
    init_in, init_out = initial.dense(config, config.d_model), initial.dense(config, config.d_ff)
    specs = [linear_spec(f"{name}.{w}", wide, init_in, "dense_ffn", "column") for w in into]
    return [*specs, linear_spec(f"{name}.wo", narrow, init_out, "dense_ffn", "row")]


class FeedForward(nn.Module):
    """relu(x wi) wo, or (gelu(x wi_gate) * (x wi)) wo."""

    def __init__(self, name: str, config: ModelConfig, params: Mapping[str, nn.Parameter], region: Region) -> None:
        super().__init__()
        self.name, self.region, self.rate = name, region, config.dropout
        self.wi, self.wo = Linear(f"{name}.wi", params), Linear(f"{name}.wo", params)
        self.wi_gate = Linear(f"{name}.wi_gate", params) if config.activation == "geglu" else None

    def forward(self, x_BLD: Tensor, ctx: Context) -> Tensor:
        """[B, L, D] to the same; `x_BLD` is split along the sequence where the region says so."""
        inside_BLD = self.region.enter(x_BLD, ctx.work)
        hidden_BLF = ctx.again("core", self._hidden, inside_BLD, ctx)
        return self.region.leave(self.wo(hidden_BLF, ctx.work))

    def _hidden(self, x_BLD: Tensor, ctx: Context) -> Tensor:
        gate_DF = None if self.wi_gate is None else self.wi_gate.weight_IO
        hidden_BLF = hidden_units(x_BLD, self.wi.weight_IO, gate_DF, ctx.work)
        first = self.region.axis.rank * hidden_BLF.shape[-1]
        return dropout(hidden_BLF, self.rate, f"{self.name}.hidden", ctx, split=False, first_feature=first)
