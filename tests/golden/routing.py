"""What router vectors are compared by: combine tensors from choices and plans."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megaswitch.layers.moe.choice import Choice, encode, named_index, wanted_index
from megaswitch.layers.moe.plan import Plan, count_choices, make_plan

Vector = dict[str, NDArray]


def logits_of(vector: Vector) -> Tensor:
    """[G, S, E], from the vector's tokens and weights."""
    return torch.from_numpy(vector["x"]) @ torch.from_numpy(vector["W"])


def planned(choice: Choice, shape: torch.Size, capacity: int, real_GS: Tensor | None = None) -> tuple[Plan, Tensor]:
    """The plan of whole groups [G, S], and the counts [G, K, E] of named choices."""
    real_GS = torch.ones(shape, dtype=torch.bool) if real_GS is None else real_GS
    code = encode(choice.index_TK.view(*shape, -1), choice.wanted_TK.view(*shape, -1), real_GS)
    experts = choice.probs_TE.shape[1]
    priority = None if choice.priority_T is None else choice.priority_T.view(shape)
    plan = make_plan(wanted_index(code), experts, capacity, priority_GS=priority, exclusive=choice.exclusive)
    return plan, count_choices(named_index(code), experts)


def combine(choice: Choice, plan: Plan, capacity: int) -> NDArray:
    """[G, S, E, C]: each served choice's gate at its expert's slot, filled in one by one."""
    groups, tokens, rounds = plan.kept_GSK.shape
    index, gate = choice.index_TK.view(groups, tokens, rounds), choice.gate_TK.view(groups, tokens, rounds)
    table = np.zeros((groups, tokens, choice.probs_TE.shape[1], capacity))
    for place in plan.kept_GSK.nonzero().tolist():
        g, s, k = place
        assert table[g, :, index[g, s, k], plan.position_GSK[g, s, k]].sum() == 0, "a slot is given out twice"
        table[g, s, index[g, s, k], plan.position_GSK[g, s, k]] = gate[g, s, k]
    return table
