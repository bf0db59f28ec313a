"""The router's module: its weights, its input's noise and precision, and the algorithm it hands them to.

T local tokens, D d_model, E experts.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from megaswitch.layers import initial
from megaswitch.layers.moe.choice import Choice, Places
from megaswitch.layers.moe.noise import Noise
from megaswitch.layers.moe.routers.noisy import noisy_top_k
from megaswitch.layers.moe.routers.ntlb import no_token_left_behind
from megaswitch.layers.moe.routers.switch import switch
from megaswitch.layers.moe.routers.top2 import top2
from megaswitch.layers.moe.scores import Scores, jittered
from megaswitch.layers.weight_work import WeightWork, product
from megaswitch.model.config import ModelConfig
from megaswitch.ops.ops import BY_DEFINITION, Ops
from megaswitch.ops.reference.router import Jitter
from megaswitch.params.spec import ParamSpec
from megaswitch.utils.precision import at_least_float32, widen


def router_specs(name: str, config: ModelConfig) -> list[ParamSpec]:
    """The matrix [d_model, experts], held alike by all tp ranks, each of which routes its own tokens; noisy top-k
    has a second one for the size of its noise."""
    shape, init = (config.d_model, config.num_experts), initial.router(config)
    names = [name, f"{name}_noise"] if config.router == "noisy_topk" else [name]
    return [ParamSpec(n, shape, init, "router", tp_partial="always") for n in names]


def disturb(
    x_TD: Tensor, dtype: torch.dtype, config: ModelConfig, noise: Noise
) -> tuple[Tensor, Jitter | None]:
    """The router's copy of its input in training: after dropout (appendix C) in that type, and the multiplication by a
    uniform number from 1 - jitter to 1 + jitter that comes next. The experts get the tokens untouched."""
    if not noise.training:
        return x_TD, None
    if config.router_dropout:
        keep = 1.0 - config.router_dropout
        x_TD = x_TD.to(dtype) * (noise.uniform("router_dropout", x_TD.shape[1]) < keep).to(dtype) / keep
    return x_TD, noise.jitter(config.jitter) if config.jitter else None


def route(
    x_TD: Tensor,
    w_DE: Tensor,
    noise_DE: Tensor | None,
    config: ModelConfig,
    noise: Noise,
    places: Places,
    work: WeightWork | None = None,
    ops: Ops = BY_DEFINITION,
) -> Choice:
    """Choices for tokens of any type, in the configured precision (paper 2.4).

    "float32": product and softmax in at least float32 (selective precision). "compute": the product in the
    tokens' type, the softmax in at least float32. "narrow": everything in the tokens' type, to compare with.
    `work` takes the weights' gradients.
    """
    dtype = at_least_float32(x_TD.dtype) if config.router_dtype == "float32" else x_TD.dtype
    work = work or WeightWork()
    x_TD, jitter = disturb(x_TD, dtype, config, noise)
    narrow = config.router_dtype == "narrow"
    if narrow or noise_DE is not None:  # not only the router's pass reads them
        x_TD, jitter = jittered(x_TD, jitter, dtype, ops), None
    if narrow:
        scores = Scores(product(x_TD, w_DE, work), places, ops=ops)
    else:
        scores = Scores(x_TD, places, w_DE, dtype, jitter, work, ops)
    raw_std_TE = None if noise_DE is None else product(x_TD, noise_DE, work)
    choice = _choose(scores, raw_std_TE if raw_std_TE is None or narrow else widen(raw_std_TE), config, noise)
    if config.router_priority == "position":
        return choice
    return choice._replace(priority_T=_priority(choice.routed.logits_TE))


def _choose(scores: Scores, raw_std_TE: Tensor | None, config: ModelConfig, noise: Noise) -> Choice:
    """By the configured algorithm; noisy top-k has the size of its noise."""
    if config.router == "top2":
        return top2(scores, config, noise)
    if config.router == "ntlb":
        return no_token_left_behind(scores, config)
    if config.router == "noisy_topk":
        assert raw_std_TE is not None
        return noisy_top_k(scores, raw_std_TE, config, noise)
    return switch(scores, config, noise)


@torch.no_grad()
def _priority(logits_TE: Tensor) -> Tensor:
    """[T] float64: the greatest probability."""
    return torch.softmax(logits_TE, -1).amax(-1).to(torch.float64)


class Router(nn.Module):
    """`route` with its weights."""

    def __init__(self, name: str, config: ModelConfig, params: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.config, self.weight_DE = config, params[name]
        self.noise_DE = params[f"{name}_noise"] if config.router == "noisy_topk" else None

    def forward(self, x_TD: Tensor, noise: Noise, places: Places, work: WeightWork, ops: Ops) -> Choice:
        return route(x_TD, self.weight_DE, self.noise_DE, self.config, noise, places, work, ops)
