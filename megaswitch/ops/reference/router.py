"""Top-1 routing: softmax, choice, gate, and what the auxiliary losses need of the probabilities.

T tokens, G groups of tokens, E experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Routed(NamedTuple):
    """`index_T`: the expert of each token, int64; `gate_T`: its probability; `log_z_T`: log sum exp of the logits;
    `entropy_T` of the probabilities, without gradient; `probs_GE`: their sums over the real tokens of each group."""

    index_T: Tensor
    gate_T: Tensor
    log_z_T: Tensor
    entropy_T: Tensor
    probs_GE: Tensor


@torch.no_grad()
def entropy(probs_TE: Tensor) -> Tensor:
    """[T]: -sum of p log p, natural logarithm."""
    return -(probs_TE * probs_TE.clamp(min=torch.finfo(probs_TE.dtype).tiny).log()).sum(-1)


def group_sums(values_TE: Tensor, group_T: Tensor, real_T: Tensor, num_groups: int) -> Tensor:
    """[G, E]: sums over the real tokens of each group."""
    zeros_GE = values_TE.new_zeros(num_groups, values_TE.shape[1])
    return zeros_GE.index_add(0, group_T, values_TE * real_T.unsqueeze(1))


def route_top1(
    logits_TE: Tensor, noise_TE: Tensor | None, group_T: Tensor, real_T: Tensor, num_groups: int
) -> Routed:
    """The expert of greatest logit (the lowest on ties), after adding `noise_TE` where it is given; the gate is that
    expert's probability without noise, not renormalised. `real_T` says which tokens count in `probs_GE`."""
    probs_TE = torch.softmax(logits_TE, -1)
    wanted_TE = logits_TE if noise_TE is None else logits_TE + noise_TE.to(logits_TE.dtype)
    index_T = wanted_TE.argmax(-1)
    return Routed(
        index_T,
        probs_TE.gather(-1, index_T.unsqueeze(-1)).squeeze(-1),
        torch.logsumexp(logits_TE, -1),
        entropy(probs_TE),
        group_sums(probs_TE, group_T, real_T, num_groups),
    )
