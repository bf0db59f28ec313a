"""The top-2 mixture-of-experts baseline (Mesh TensorFlow's rules).

T local tokens, E experts, K = 2 choices.
"""

from typing import Literal

import torch
from torch import Tensor

from megaswitch.layers.moe.choice import Balance, Choice
from megaswitch.layers.moe.noise import Noise
from megaswitch.layers.moe.scores import Scores
from megaswitch.model.config import ModelConfig
from megaswitch.ops.reference.router import group_sums

Policy = Literal["all", "none", "threshold", "random"]
_EPSILON = 1e-9
_SECOND_WEIGHT = 0.5


def second_wanted(gate_T: Tensor, policy: Policy, threshold: float, uniform_T: Tensor | None) -> Tensor:
    """Whether the second expert is used, by its normalised gate: always, never, above the threshold, or with
    probability gate / threshold (`uniform_T` in [0, 1) decides)."""
    if policy in ("all", "none"):
        return torch.full_like(gate_T, policy == "all", dtype=torch.bool)
    if policy == "threshold":
        return gate_T > threshold
    assert uniform_T is not None
    return uniform_T < gate_T / threshold


def pick_two(
    scores: Scores, policy: Policy, threshold: float, second_place_loss: bool, uniform_T: Tensor | None
) -> Choice:
    """The two experts of greatest logit (which tells them apart even where probabilities vanish), gates normalised
    by their sum, before slots are given out. The balance loss counts first choices, and with `second_place_loss` half
    as much the second ones, whose probabilities are those without the first."""
    routed = scores.route(None, 2)
    gate_TK = routed.gate_TK / (routed.gate_TK.sum(-1, keepdim=True) + _EPSILON)
    wanted_T = second_wanted(gate_TK[:, 1].detach(), policy, threshold, uniform_T)
    balance = [Balance(0, 1.0, routed.probs_GE)]
    if second_place_loss:
        rest_TE = torch.softmax(routed.logits_TE, -1).scatter(-1, routed.index_TK[:, :1], 0.0)
        normed_TE = rest_TE / (rest_TE.sum(-1, keepdim=True) + _EPSILON)
        balance.append(Balance(1, _SECOND_WEIGHT, group_sums(normed_TE, *scores.places[:3])))
    return Choice(
        index_TK=routed.index_TK,
        wanted_TK=torch.stack([torch.ones_like(wanted_T), wanted_T], -1),
        gate_TK=gate_TK,
        routed=routed,
        balance=tuple(balance),
    )


def top2(scores: Scores, config: ModelConfig, noise: Noise) -> Choice:
    """Two experts a token by the configured policy."""
    uniform_T = noise.uniform("second", 1)[:, 0] if config.second_policy == "random" else None
    policy, threshold = config.second_policy, config.second_threshold
    return pick_two(scores, policy, threshold, config.second_place_loss, uniform_T)
