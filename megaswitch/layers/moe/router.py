"""The router of Switch layers: which expert each token wants, and how much (paper 2.1).

T local tokens, D d_model, E experts.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from megaswitch.model.config import ModelConfig
from megaswitch.params.spec import Init, ParamSpec
from megaswitch.utils.precision import at_least_float32, widen


class Choice(NamedTuple):
    """What the router says of each token, in at least float32: `probs_TE`; `index_T`, the expert of greatest
    probability (the lowest on ties); `gate_T`, that probability, not renormalised; `log_z_T`, log sum exp of
    the logits."""

    probs_TE: Tensor
    index_T: Tensor
    gate_T: Tensor
    log_z_T: Tensor


def choose(x_TD: Tensor, w_DE: Tensor, jitter_TD: Tensor | None = None, *, wide_product: bool = True) -> Choice:
    """Top-1 choice from tokens in any type.

    `jitter_TD` (factors around 1) multiplies the router's copy of the tokens only; the experts get them
    untouched. With `wide_product` the product itself is in at least float32 (selective precision, paper 2.4);
    without it only the softmax is.
    """
    dtype = at_least_float32(x_TD.dtype) if wide_product else x_TD.dtype
    routed_TD = x_TD.to(dtype)
    if jitter_TD is not None:
        routed_TD = routed_TD * jitter_TD.to(dtype)
    logits_TE = widen(routed_TD @ w_DE.to(dtype))
    log_z_T = torch.logsumexp(logits_TE, -1)
    probs_TE = torch.softmax(logits_TE, -1)
    index_T = probs_TE.argmax(-1)
    gate_T = probs_TE.gather(-1, index_T.unsqueeze(-1)).squeeze(-1)
    return Choice(probs_TE, index_T, gate_T, log_z_T)


def router_specs(name: str, config: ModelConfig) -> list[ParamSpec]:
    """The matrix [d_model, experts], held alike by all tp ranks, each of which routes its own tokens."""
    shape = (config.d_model, config.num_experts)
    return [ParamSpec(name, shape, Init("normal", config.router_init_std), "router", tp_partial="always")]


class Router(nn.Module):
    """`choose` with its weight."""

    def __init__(self, name: str, config: ModelConfig, params: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.weight_DE = params[name]
        self.wide_product = config.router_dtype == "float32"

    def forward(self, x_TD: Tensor, jitter_TD: Tensor | None) -> Choice:
        return choose(x_TD, self.weight_DE, jitter_TD, wide_product=self.wide_product)
