"""Noisy top-k gating (Shazeer et al. 2017, section 2.1 and appendix A).

T local tokens, E experts, K choices.
"""

from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from megaswitch.layers.moe.choice import Choice, Smooth
from megaswitch.layers.moe.noise import Noise
from megaswitch.layers.moe.scores import Scores
from megaswitch.model.config import ModelConfig
from megaswitch.ops.reference.random import OPEN_INTERVAL


def normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones in [0, 1), which are kept off the ends."""
    return (2.0 * uniform.clamp(*OPEN_INTERVAL) - 1.0).erfinv() * sqrt(2.0)


def pick_noisy(scores: Scores, raw_std_TE: Tensor, normal_TE: Tensor | None, choices: int) -> Choice:
    """The `choices` experts of greatest clean + normal * softplus(raw_std), gates by a softmax over these alone.

    Without noise (evaluation) the clean logits decide and there is no load.
    """
    std_TE = F.softplus(raw_std_TE)
    noise_TE = None if normal_TE is None else normal_TE.to(std_TE.dtype) * std_TE
    routed = scores.route(noise_TE, choices)
    clean_TE = routed.logits_TE
    noisy_TE = clean_TE if noise_TE is None else clean_TE + noise_TE
    gate_TK = torch.softmax(noisy_TE.gather(-1, routed.index_TK), -1)
    importance_TE = torch.zeros_like(clean_TE).scatter(-1, routed.index_TK, gate_TK)
    load_TE = None if normal_TE is None else _load(clean_TE, noisy_TE, std_TE, choices)
    return Choice(
        index_TK=routed.index_TK,
        wanted_TK=torch.ones_like(routed.index_TK, dtype=torch.bool),
        gate_TK=gate_TK,
        routed=routed,
        smooth=Smooth(importance_TE, load_TE),
    )


def _load(clean_TE: Tensor, noisy_TE: Tensor, std_TE: Tensor, choices: int) -> Tensor:
    """P(x, i): the chance that expert i is among the best when its own noise alone is drawn again, the others'
    kept (equation 8 of the appendix): it must beat the k-th best of the others."""
    experts = clean_TE.shape[-1]
    if choices >= experts:
        return torch.ones_like(clean_TE)
    top_TK = torch.topk(noisy_TE, choices + 1, -1).values
    inside_TE = noisy_TE >= top_TK[:, choices - 1 : choices]
    bar_TE = torch.where(inside_TE, top_TK[:, choices : choices + 1], top_TK[:, choices - 1 : choices])
    z_TE = (clean_TE - bar_TE) / std_TE.clamp(min=torch.finfo(std_TE.dtype).tiny)
    return 0.5 * (1.0 + torch.erf(z_TE / sqrt(2.0)))


def noisy_top_k(scores: Scores, raw_std_TE: Tensor, config: ModelConfig, noise: Noise) -> Choice:
    """`pick_noisy` with the configured number of choices; noise in training only."""
    normal_TE = None
    if noise.training:
        normal_TE = normal(noise.uniform("noisy", config.num_experts).to(raw_std_TE.dtype))
    choices = min(config.router_choices, config.num_experts)
    return pick_noisy(scores, raw_std_TE, normal_TE, choices)
