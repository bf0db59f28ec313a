"""No-Token-Left-Behind (paper appendix B): a token whose expert is full is offered to its next choice.

T local tokens, E experts, K choices.
"""

import torch
from torch import Tensor

from megaswitch.layers.moe.choice import Balance, Choice, Places
from megaswitch.model.config import ModelConfig
from megaswitch.ops.reference.router import entropy, group_sums


def pick_in_turn(logits_TE: Tensor, places: Places, choices: int) -> Choice:
    """Each token's `choices` best experts in turn; the gate is the probability of the one that serves it. The
    balance loss is the mean over the rounds."""
    probs_TE = torch.softmax(logits_TE, -1)
    index_TK = torch.sort(probs_TE, dim=-1, descending=True, stable=True).indices[:, :choices]
    sums_GE = group_sums(probs_TE, *places)
    return Choice(
        index_TK=index_TK,
        wanted_TK=torch.ones_like(index_TK, dtype=torch.bool),
        gate_TK=probs_TE.gather(-1, index_TK),
        log_z_T=torch.logsumexp(logits_TE, -1),
        entropy_T=entropy(probs_TE),
        balance=tuple(Balance(i, 1.0 / choices, sums_GE) for i in range(choices)),
        exclusive=True,
    )


def no_token_left_behind(logits_TE: Tensor, places: Places, config: ModelConfig) -> Choice:
    """`pick_in_turn` with the configured number of choices."""
    return pick_in_turn(logits_TE, places, min(config.router_choices, config.num_experts))
