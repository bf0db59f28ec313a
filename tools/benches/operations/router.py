"""All that a router does with its logits: softmax, choices, gates, places in queues, capacity, balance loss, and
statistics; and the gradient of the logits. Beside it the same by one-hot tables and cumulative sums, as transformers
has it.

G groups, S tokens of a group, T tokens, E experts, K choices a token.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from benches.operations.case import Case, Size, Work, forward_backward, normal
from megaswitch.layers.moe.choice import Places
from megaswitch.layers.moe.layer import queues
from megaswitch.layers.moe.plan import make_plan
from megaswitch.layers.moe.routers.switch import pick
from megaswitch.layers.moe.routers.top2 import pick_two
from megaswitch.layers.moe.statistics import Tokens, aux_loss, statistics, z_loss
from megaswitch.model.transformer import alone
from megaswitch.ops.ops import Ops

_FACTOR = 1.25


def cases(size: Size) -> list[Case]:
    """4,096 tokens in groups of 512, from 8 to 2,048 experts, of which a token has one or two."""
    top1 = [_case(size, E, 1) for E in ([4] if size.quick else [8, 64, 128, 2048])]
    top2 = [_case(size, E, 2) for E in ([4] if size.quick else [64, 2048])]
    return [*top1, *top2, _case(size, size.of(64, 4), 1, whole=False)]


def _case(size: Size, E: int, K: int, whole: bool = True) -> Case:
    G, S = size.of(8, 2), size.of(512, 16)
    logits = normal(G * S, E, dtype=torch.float32)
    capacity = max(1, round(_FACTOR * K * S / E))
    tp = alone(torch.device("cpu")).tp
    group_T = torch.arange(G).repeat_interleave(S)
    places = Places(group_T, torch.ones(G * S, dtype=torch.bool), G, whole)

    def ours(ops: Ops) -> Work:
        def route(logits_TE: Tensor) -> tuple[Tensor, Tensor]:
            if K == 1:
                choice = pick(logits_TE, places, None, ops)
            else:
                choice = pick_two(logits_TE, places, "all", 0.0, False, None, ops)
            index_GSK = choice.index_TK.view(G, S, K)
            first, count_GKE = queues(choice.queued, index_GSK, E, ops)
            kept_GSK = make_plan(index_GSK, E, capacity, first=first, ops=ops).kept_GSK
            tokens = Tokens(*places[:2], count_GKE)
            loss = aux_loss(choice, tokens, tp)
            statistics(loss.share, z_loss(choice, tokens), choice, index_GSK, kept_GSK, tokens, ops)
            return torch.where(kept_GSK.view(-1, K), choice.gate_TK, 0.0), loss.own

        return forward_backward(route, [logits])

    def tables(logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        probs_GSE = torch.softmax(logits_TE, -1).view(G, S, E)
        chosen_GSE = F.one_hot(probs_GSE.argmax(-1), E)
        loss = (chosen_GSE.float().mean(1) * probs_GSE.mean(1)).sum() * E
        kept_GSE = chosen_GSE * (chosen_GSE.cumsum(1) <= capacity)
        gate_GS = probs_GSE.max(-1).values
        if K == 1:
            return (gate_GS * kept_GSE.sum(-1)).flatten(), loss
        rest_GSE = probs_GSE * (1 - chosen_GSE)
        second_GSE = F.one_hot(rest_GSE.argmax(-1), E)
        place_GSE = second_GSE.cumsum(1) + kept_GSE.sum(1, keepdim=True)
        kept_GSK = torch.stack([kept_GSE.sum(-1), (second_GSE * (place_GSE <= capacity)).sum(-1)], -1)
        gate_GSK = torch.stack([gate_GS, rest_GSE.max(-1).values], -1)
        return (gate_GSK / gate_GSK.sum(-1, keepdim=True) * kept_GSK).view(-1, K), loss

    return Case(
        f"router {G * S}x{E}" + f" top-{K}" * (K > 1) + ", groups on several ranks" * (not whole),
        ours,
        ("route", "queue", "count_choices"),
        {"one-hot and cumsum": lambda: forward_backward(tables, [logits])},
        bytes=4.0 * G * S * E * 4,
    )
