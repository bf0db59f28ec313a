"""Auxiliary losses of the router, as additive shares of ranks, and how they join the gradient.

G local groups, S tokens of a group, T local tokens, E experts.
"""

from typing import Any

import torch
from torch import Tensor

from megaswitch.comm.collectives import all_reduce
from megaswitch.topology.topology import Axis

_LEAST = 1e-10


def balance_loss(probs_GE: Tensor, count_GE: Tensor) -> Tensor:
    """This rank's share of sum over its groups of E * sum_i f_i P_i (paper equations 4-6).

    f_i is the share of the group's real tokens that chose expert i before any was dropped; P_i the mean over
    the group's real tokens of the probability of i, of which this rank adds its own tokens' part: `probs_GE` are
    the sums over its real tokens. f carries no gradient. A group of padding adds 0.
    """
    num_experts = count_GE.shape[1]
    tokens_G = count_GE.sum(1).clamp(min=1).to(probs_GE.dtype)
    f_GE = count_GE.to(probs_GE.dtype) / tokens_G.unsqueeze(1)
    return (probs_GE * f_GE * (num_experts / tokens_G).unsqueeze(1)).sum()


def router_z_loss(log_z_T: Tensor, group_T: Tensor, real_T: Tensor, count_GE: Tensor) -> Tensor:
    """This rank's share of sum over its groups of the mean squared log-partition of real tokens (ST-MoE)."""
    tokens_G = count_GE.sum(1).clamp(min=1).to(log_z_T.dtype)
    return (log_z_T.square() * real_T / tokens_G[group_T]).sum()


def variation(total_GE: Tensor) -> Tensor:
    """[G]: squared coefficient of variation over experts, variance / mean^2 (Shazeer 2017, equation 7); 0 where
    nothing was counted."""
    mean_G = total_GE.mean(1)
    variance_G = (total_GE - mean_G.unsqueeze(1)).square().mean(1)
    return variance_G / mean_G.square().clamp(min=_LEAST)


def whole_sums(own_GE: Tensor, axis: Axis) -> Tensor:
    """[G, E]: sums over groups' own tokens here and on the other ranks of `axis`, these without gradient: each rank's
    gradient is the share of its own tokens."""
    return own_GE + (all_reduce(own_GE.detach(), axis) - own_GE.detach())


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, scale: float) -> Tensor:
        ctx.scale, ctx.like = scale, loss.detach()
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, torch.full_like(ctx.like, ctx.scale), None


def attach(x: Tensor, loss: Tensor, scale: float) -> Tensor:
    """`x`; when its gradient comes by, `loss` gets the gradient `scale`, as if scale * loss had been added to
    the objective. So every schedule carries it and no stage has to return it."""
    out: Tensor = _Attach.apply(x, loss, scale)  # type: ignore[no-untyped-call]
    return out
