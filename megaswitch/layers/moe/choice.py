"""What a router says of each token: the one type that all routers return and that the rest of the layer reads.

T local tokens, G groups, E experts, K choices a token.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from megaswitch.ops.reference.router import Routed

UNROUTED = -1


class Places(NamedTuple):
    """Where tokens belong: `group_T`, the routing group of each (int64, 0 to `num_groups` - 1); `real_T`, whether it is
    routed; `whole`: whether no other rank has tokens of these groups."""

    group_T: Tensor
    real_T: Tensor
    num_groups: int
    whole: bool = True


class Balance(NamedTuple):
    """A share of the load-balancing loss: `weight` x E x sum_i f_i P_i, with f of the choices of one round and P
    from `probs_GE`, the sums of probabilities over each group's real tokens here."""

    round: int
    weight: float
    probs_GE: Tensor


class Smooth(NamedTuple):
    """Shazeer 2017: losses are squared coefficients of variation of these sums over a group's tokens, [T, E]:
    the gates (importance), and the chance that noise leaves an expert among the chosen (load; None without noise)."""

    importance_TE: Tensor
    load_TE: Tensor | None


class Choice(NamedTuple):
    """The choices of each token, best first; floating-point numbers in at least float32.

    `index_TK` is the expert of each choice; `wanted_TK` whether it is to be used (a second choice may be named,
    and counted by the balance loss, without being wanted); `gate_TK` multiplies the expert's output;
    `priority_T` orders tokens for slots where order is not by position; `exclusive` says that a token is served
    by its first choice that has a slot. All first choices are wanted, so that places in `routed` are theirs.
    """

    index_TK: Tensor
    wanted_TK: Tensor
    gate_TK: Tensor
    routed: Routed
    balance: tuple[Balance, ...] = ()
    smooth: Smooth | None = None
    priority_T: Tensor | None = None
    exclusive: bool = False


def encode(index_K: Tensor, wanted_K: Tensor, routed: Tensor) -> Tensor:
    """Choices as one integer each, for the other ranks: the expert, -2 - expert where it is named but not wanted,
    -1 where the token is not routed (`routed` lacks the last dimension)."""
    return torch.where(routed.unsqueeze(-1), torch.where(wanted_K, index_K, -2 - index_K), UNROUTED)


def wanted_index(code: Tensor) -> Tensor:
    """The expert that is wanted, -1 where none is."""
    return torch.where(code < 0, UNROUTED, code)


def named_index(code: Tensor) -> Tensor:
    """The expert that is named, wanted or not; -1 where the token is not routed."""
    return torch.where(code < UNROUTED, -2 - code, code)
