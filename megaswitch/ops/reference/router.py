"""Routing: from tokens, or their logits, to softmax, choices, gates, places in queues, and what the auxiliary losses
need of the probabilities.

T tokens, D d_model, G groups of tokens, E experts, K choices a token.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from megaswitch.ops.reference.dropout import jitter
from megaswitch.ops.reference.routing import count_choices, queue
from megaswitch.utils.precision import at_least_float32


class Jitter(NamedTuple):
    """Multiplication by numbers from 1 - size to 1 + size: the tokens' states of the generator (int64)."""

    states_T: Tensor
    size: float


class Scored(NamedTuple):
    """What tokens are scored by: their logits are the product of `x_TD` with the matrix, in the matrix's type, after
    `jitter` where there is one. Without a matrix `x_TD` are the logits."""

    x_TD: Tensor
    weight_DE: Tensor | None = None
    jitter: Jitter | None = None


class Queued(NamedTuple):
    """`place_T`: of each real token among those of its group with the same first choice, in token order, from 0 (of
    others 0); `count_GKE`: real tokens of each group that name each expert in each round. int64."""

    place_T: Tensor
    count_GKE: Tensor


class Routed(NamedTuple):
    """`logits_TE`; `index_TK`: the experts of each token, best first, int64; `gate_TK`: their probabilities; `log_z_T`:
    log sum exp of the logits; `entropy_T` of all probabilities, without gradient; `probs_GE`: sums of these over the
    real tokens of each group; `queued`: see there, None where it was not asked for."""

    logits_TE: Tensor
    index_TK: Tensor
    gate_TK: Tensor
    log_z_T: Tensor
    entropy_T: Tensor
    probs_GE: Tensor
    queued: Queued | None


@torch.no_grad()
def entropy(probs_TE: Tensor) -> Tensor:
    """[T]: -sum of p log p, natural logarithm."""
    return -(probs_TE * probs_TE.clamp(min=torch.finfo(probs_TE.dtype).tiny).log()).sum(-1)


def group_sums(values_TE: Tensor, group_T: Tensor, real_T: Tensor, num_groups: int) -> Tensor:
    """[G, E]: sums over the real tokens of each group."""
    zeros_GE = values_TE.new_zeros(num_groups, values_TE.shape[1])
    return zeros_GE.index_add(0, group_T, values_TE * real_T.unsqueeze(1))


def best(wanted_TE: Tensor, choices: int) -> Tensor:
    """[T, K]: places of the greatest numbers in descending order, the lowest first on ties."""
    if choices == 1:  # a tenth of the time of a sort
        return wanted_TE.argmax(-1, keepdim=True)
    return torch.sort(wanted_TE, dim=-1, descending=True, stable=True).indices[:, :choices].contiguous()


def _queued(index_TK: Tensor, group_T: Tensor, real_T: Tensor, num_groups: int, num_experts: int) -> Queued:
    """As if each group had experts of its own."""
    lanes = num_groups * num_experts
    lane_TK = torch.where(real_T.unsqueeze(1), group_T.unsqueeze(1) * num_experts + index_TK, -1)
    count_KGE = count_choices(lane_TK.unsqueeze(0), lanes).view(-1, num_groups, num_experts)
    return Queued(queue(lane_TK[None, :, 0], lanes).position_GS[0], count_KGE.transpose(0, 1).contiguous())


def _logits(scored: Scored) -> Tensor:
    """[T, E]: the logits, in at least float32 where there is a product."""
    x_TD, weight_DE, moved = scored
    if weight_DE is None:
        return x_TD
    x_TD = x_TD.to(weight_DE.dtype)
    if moved is not None:
        x_TD = jitter(x_TD, *moved)
    return (x_TD @ weight_DE).to(at_least_float32(weight_DE.dtype))


def route(
    scored: Scored,
    noise_TE: Tensor | None,
    group_T: Tensor,
    real_T: Tensor,
    num_groups: int,
    whole: bool,
    choices: int,
) -> Routed:
    """The `choices` experts of greatest logit, the lowest first on ties, after adding `noise_TE` where it is given;
    gates are their probabilities without noise, not renormalised. `real_T` says which tokens count in sums and queues;
    these are asked for where groups are `whole`, with no tokens elsewhere."""
    logits_TE = _logits(scored)
    probs_TE = torch.softmax(logits_TE, -1)
    wanted_TE = logits_TE if noise_TE is None else logits_TE + noise_TE.to(logits_TE.dtype)
    index_TK = best(wanted_TE.detach(), choices)
    return Routed(
        logits_TE,
        index_TK,
        probs_TE.gather(-1, index_TK),
        torch.logsumexp(logits_TE, -1),
        entropy(probs_TE),
        group_sums(probs_TE, group_T, real_T, num_groups),
        _queued(index_TK, group_T, real_T, num_groups, logits_TE.shape[1]) if whole else None,
    )


def tokens_gradient(
    grad_TE: Tensor, weight_DE: Tensor, moved: Jitter | None, dtype: torch.dtype
) -> Tensor:
    """[T, D] in that type: the tokens' gradient from their logits', which is of the matrix's type."""
    grad_TD = grad_TE @ weight_DE.t()
    if moved is not None:
        grad_TD = jitter(grad_TD, *moved)
    return grad_TD.to(dtype)


def route_gradient(
    logits_TE: Tensor,
    log_z_T: Tensor,
    index_TK: Tensor,
    group_T: Tensor,
    real_T: Tensor,
    grad_gate_TK: Tensor,
    grad_log_z_T: Tensor,
    grad_probs_GE: Tensor,
) -> Tensor:
    """[T, E]: the logits' gradient by way of gates, log sum exp and sums of probabilities. No logit is above the log
    sum exp, whose own rounding the division takes out of the probabilities."""
    powers_TE = torch.exp(logits_TE - log_z_T.unsqueeze(1))
    probs_TE = powers_TE / powers_TE.sum(-1, keepdim=True)
    of_probs_TE = grad_probs_GE[group_T] * real_T.unsqueeze(1)
    of_probs_TE.scatter_add_(1, index_TK, grad_gate_TK)
    shared_T = grad_log_z_T - (probs_TE * of_probs_TE).sum(-1)
    return probs_TE * (of_probs_TE + shared_T.unsqueeze(1))
