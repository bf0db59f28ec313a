"""Switch routing: one expert a token (paper 2.1).

T local tokens, E experts.
"""

import torch
from torch import Tensor

from megaswitch.layers.moe.choice import Balance, Choice
from megaswitch.layers.moe.noise import Noise
from megaswitch.layers.moe.scores import Scores
from megaswitch.model.config import ModelConfig
from megaswitch.ops.reference.random import OPEN_INTERVAL


def gumbel(uniform: Tensor) -> Tensor:
    """-log(-log u): added to logits, its argmax is a draw from their softmax. u is kept off 0 and 1."""
    return -torch.log(-torch.log(uniform.clamp(*OPEN_INTERVAL)))


def pick(scores: Scores, noise_TE: Tensor | None = None) -> Choice:
    """One choice, by the scores and noise that is added to them."""
    routed = scores.route(noise_TE, 1)
    return Choice(
        index_TK=routed.index_TK,
        wanted_TK=torch.ones_like(routed.index_TK, dtype=torch.bool),
        gate_TK=routed.gate_TK,
        routed=routed,
        balance=(Balance(0, 1.0, routed.probs_GE),),
    )


def switch(scores: Scores, config: ModelConfig, noise: Noise) -> Choice:
    """Top-1, or in training with `exploration` "sample" a draw from the softmax (appendix C)."""
    sampling = config.exploration == "sample" and noise.training
    noise_TE = gumbel(noise.uniform("sample", config.num_experts)) if sampling else None
    return pick(scores, noise_TE)
