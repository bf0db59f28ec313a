"""Switch routing: one expert a token (paper 2.1).

T local tokens, E experts.
"""

import torch
from torch import Tensor

from megaswitch.layers.moe.choice import Balance, Choice, Places
from megaswitch.layers.moe.noise import Noise
from megaswitch.model.config import ModelConfig
from megaswitch.ops.ops import BY_DEFINITION, Ops
from megaswitch.ops.reference.random import OPEN_INTERVAL


def gumbel(uniform: Tensor) -> Tensor:
    """-log(-log u): added to logits, its argmax is a draw from their softmax. u is kept off 0 and 1."""
    return -torch.log(-torch.log(uniform.clamp(*OPEN_INTERVAL)))


def pick(logits_TE: Tensor, places: Places, noise_TE: Tensor | None = None, ops: Ops = BY_DEFINITION) -> Choice:
    """`ops.route` with one choice."""
    routed = ops.route(logits_TE, noise_TE, *places, 1)
    return Choice(
        index_TK=routed.index_TK,
        wanted_TK=torch.ones_like(routed.index_TK, dtype=torch.bool),
        gate_TK=routed.gate_TK,
        log_z_T=routed.log_z_T,
        entropy_T=routed.entropy_T,
        queued=routed.queued,
        balance=(Balance(0, 1.0, routed.probs_GE),),
    )


def switch(logits_TE: Tensor, places: Places, config: ModelConfig, noise: Noise, ops: Ops) -> Choice:
    """Top-1, or in training with `exploration` "sample" a draw from the softmax (appendix C)."""
    sampling = config.exploration == "sample" and noise.training
    noise_TE = gumbel(noise.uniform("sample", logits_TE.shape[1])) if sampling else None
    return pick(logits_TE, places, noise_TE, ops)
