"""No-Token-Left-Behind (paper appendix B): a token whose expert is full is offered to its next choice.

T local tokens, E experts, K choices.
"""

import torch

from megaswitch.layers.moe.choice import Balance, Choice
from megaswitch.layers.moe.scores import Scores
from megaswitch.model.config import ModelConfig


def pick_in_turn(scores: Scores, choices: int) -> Choice:
    """Each token's `choices` best experts in turn; the gate is the probability of the one that serves it. The
    balance loss is the mean over the rounds."""
    routed = scores.route(None, choices)
    return Choice(
        index_TK=routed.index_TK,
        wanted_TK=torch.ones_like(routed.index_TK, dtype=torch.bool),
        gate_TK=routed.gate_TK,
        routed=routed,
        balance=tuple(Balance(i, 1.0 / choices, routed.probs_GE) for i in range(choices)),
        exclusive=True,
    )


def no_token_left_behind(scores: Scores, config: ModelConfig) -> Choice:
    """`pick_in_turn` with the configured number of choices."""
    return pick_in_turn(scores, min(config.router_choices, config.num_experts))
