"""What router vectors are compared by: combine tensors from choices and plans."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megaswitch.layers.moe.choice import Choice, Places, encode, named_index, wanted_index
from megaswitch.layers.moe.plan import Plan, make_plan
from megaswitch.ops.reference.routing import count_choices

Vector = dict[str, NDArray]


def logits_of(vector: Vector) -> Tensor:
    """[G, S, E], from the vector's tokens and weights."""
    return torch.from_numpy(vector["x"]) @ torch.from_numpy(vector["W"])


def places(shape: torch.Size, real_GS: Tensor | None = None) -> Places:
    """Those of whole groups [G, S]."""
    real_GS = torch.ones(shape, dtype=torch.bool) if real_GS is None else real_GS
    return Places(torch.arange(shape[0]).repeat_interleave(shape[1]), real_GS.flatten(), shape[0])


def each_alone(tokens: int) -> Places:
    """Groups of one token: the sums of their probabilities are the probabilities."""
    return places(torch.Size((tokens, 1)))


def planned(
    choice: Choice, shape: torch.Size, capacity: int, experts: int, real_GS: Tensor | None = None
) -> tuple[Plan, Tensor]:
    """The plan of whole groups [G, S], and the counts [G, K, E] of named choices."""
    real_GS = torch.ones(shape, dtype=torch.bool) if real_GS is None else real_GS
    code = encode(choice.index_TK.view(*shape, -1), choice.wanted_TK.view(*shape, -1), real_GS)
    priority = None if choice.priority_T is None else choice.priority_T.view(shape)
    plan = make_plan(wanted_index(code), experts, capacity, priority_GS=priority, exclusive=choice.exclusive)
    return plan, count_choices(named_index(code), experts)


def combine(choice: Choice, plan: Plan, capacity: int, experts: int) -> NDArray:
    """[G, S, E, C]: each served choice's gate at its expert's slot, filled in one by one."""
    groups, tokens, rounds = plan.kept_GSK.shape
    index, gate = choice.index_TK.view(groups, tokens, rounds), choice.gate_TK.view(groups, tokens, rounds)
    table = np.zeros((groups, tokens, experts, capacity))
    for place in plan.kept_GSK.nonzero().tolist():
        g, s, k = place
        assert table[g, :, index[g, s, k], plan.position_GSK[g, s, k]].sum() == 0, "a slot is given out twice"
        table[g, s, index[g, s, k], plan.position_GSK[g, s, k]] = gate[g, s, k]
    return table
