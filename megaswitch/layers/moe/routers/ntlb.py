"""No-Token-Left-Behind (paper appendix B): a token whose expert is full is offered to its next choice.

T local tokens, E experts, K choices.
"""

import torch
from torch import Tensor

from megaswitch.layers.moe.choice import Balance, Choice, Places
from megaswitch.model.config import ModelConfig
from megaswitch.ops.ops import BY_DEFINITION, Ops


def pick_in_turn(logits_TE: Tensor, places: Places, choices: int, ops: Ops = BY_DEFINITION) -> Choice:
    """Each token's `choices` best experts in turn; the gate is the probability of the one that serves it. The
    balance loss is the mean over the rounds."""
    routed = ops.route(logits_TE, None, *places, choices)
    return Choice(
        index_TK=routed.index_TK,
        wanted_TK=torch.ones_like(routed.index_TK, dtype=torch.bool),
        gate_TK=routed.gate_TK,
        log_z_T=routed.log_z_T,
        entropy_T=routed.entropy_T,
        queued=routed.queued,
        balance=tuple(Balance(i, 1.0 / choices, routed.probs_GE) for i in range(choices)),
        exclusive=True,
    )


def no_token_left_behind(logits_TE: Tensor, places: Places, config: ModelConfig, ops: Ops) -> Choice:
    """`pick_in_turn` with the configured number of choices."""
    return pick_in_turn(logits_TE, places, min(config.router_choices, config.num_experts), ops)
