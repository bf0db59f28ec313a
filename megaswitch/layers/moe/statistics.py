"""Auxiliary losses of a layer from its router's choices, and what the layer reports of a pass.

T local tokens, G groups, K choices a token, E experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from megaswitch.layers.moe.choice import Choice, Smooth
from megaswitch.layers.moe.losses import balance_loss, router_z_loss, variation, whole_sums
from megaswitch.ops.ops import Ops
from megaswitch.ops.reference.router import group_sums
from megaswitch.topology.topology import Axis

STATISTICS = ("aux", "z", "dropped", "routed", "entropy")
"""What a layer adds to the record of a step, before the number of assignments of each expert."""


class Tokens(NamedTuple):
    """Local tokens: `group_T`, the group of each; `real_T`, whether it is routed; and `count_GKE`, how many tokens
    of the whole group named each expert in each round of choices."""

    group_T: Tensor
    real_T: Tensor
    count_GKE: Tensor


class AuxLoss(NamedTuple):
    """`own`: what this rank attaches, whose gradients over all ranks add up to the whole loss's; `share`: a part of
    its value, which over all ranks adds up to the whole value."""

    own: Tensor
    share: Tensor


def aux_loss(choice: Choice, tokens: Tokens, tp: Axis) -> AuxLoss:
    """The load-balancing loss summed over this rank's groups, before its coefficient."""
    if choice.smooth is not None:
        return _variation_loss(choice.smooth, tokens, tp)
    shares = [
        b.weight * balance_loss(b.probs_GE, tokens.count_GKE[:, b.round]) for b in choice.balance
    ]
    total = torch.stack(shares).sum()
    return AuxLoss(total, total)


def _variation_loss(smooth: Smooth, tokens: Tokens, tp: Axis) -> AuxLoss:
    """Squared coefficients of variation of importance and load (Shazeer 2017), of each whole group."""
    groups = tokens.count_GKE.shape[0]
    parts = [part for part in smooth if part is not None]
    sums = [whole_sums(group_sums(part, tokens.group_T, tokens.real_T, groups), tp) for part in parts]
    total = torch.stack([variation(total_GE).sum() for total_GE in sums]).sum()
    return AuxLoss(total, total / tp.size)


def z_loss(choice: Choice, tokens: Tokens) -> Tensor:
    """This rank's share of the router z-loss summed over its groups, before its coefficient."""
    return router_z_loss(choice.routed.log_z_T, tokens.group_T, tokens.real_T, tokens.count_GKE[:, 0])


@torch.no_grad()
def statistics(
    aux: Tensor, z: Tensor, choice: Choice, index_BlK: Tensor, kept_BlK: Tensor, tokens: Tokens, ops: Ops
) -> Tensor:
    """[5 + E]: STATISTICS and the assignments that wanted each expert; every number is this rank's share of a sum
    over all ranks. A routed token is dropped when no expert serves it."""
    experts = tokens.count_GKE.shape[2]
    routed, served = tokens.real_T.sum(), kept_BlK.any(-1).sum()
    numbers = [aux, z, routed - served, routed, (choice.routed.entropy_T * tokens.real_T).sum()]
    load_E = ops.count_choices(index_BlK.view(1, -1, 1), experts).view(-1)
    return torch.cat([torch.stack([n.detach().to(aux.dtype) for n in numbers]), load_E.to(aux.dtype)])
