"""Switch routing: one expert a token (paper 2.1).

T local tokens, E experts.
"""

import torch
from torch import Tensor

from megaswitch.layers.moe.choice import Balance, Choice
from megaswitch.layers.moe.noise import Noise
from megaswitch.model.config import ModelConfig
from megaswitch.ops.reference.random import OPEN_INTERVAL


def gumbel(uniform: Tensor) -> Tensor:
    """-log(-log u): added to logits, its argmax is a draw from their softmax. u is kept off 0 and 1."""
    return -torch.log(-torch.log(uniform.clamp(*OPEN_INTERVAL)))


def pick(logits_TE: Tensor, noise_TE: Tensor | None = None) -> Choice:
    """The expert of greatest logit (the lowest on ties), after adding `noise_TE` where it is given; the gate is
    that expert's probability without noise, not renormalised."""
    probs_TE = torch.softmax(logits_TE, -1)
    best_T = (probs_TE if noise_TE is None else logits_TE + noise_TE.to(logits_TE.dtype)).argmax(-1)
    index_TK = best_T.unsqueeze(-1)
    return Choice(
        index_TK=index_TK,
        wanted_TK=torch.ones_like(index_TK, dtype=torch.bool),
        gate_TK=probs_TE.gather(-1, index_TK),
        probs_TE=probs_TE,
        log_z_T=torch.logsumexp(logits_TE, -1),
        balance=(Balance(0, 1.0, probs_TE),),
    )


def switch(logits_TE: Tensor, config: ModelConfig, noise: Noise) -> Choice:
    """Top-1, or in training with `exploration` "sample" a draw from the softmax (appendix C)."""
    if config.exploration == "sample" and noise.training:
        return pick(logits_TE, gumbel(noise.uniform("sample", logits_TE.shape[1])))
    return pick(logits_TE)
