"""All that a router does with its logits: softmax, choices, gates, places in queues, capacity, balance loss, and
statistics; and the gradient of the logits. Beside it the same by one-hot tables and cumulative sums, as transformers
has it. And all of it from the tokens on, with jitter and the product that makes the logits.

G groups, S tokens of a group, T tokens, D d_model, E experts, K choices a token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benches.operations.case import Case, Size, Work, forward_backward, normal
from megaswitch.layers.moe.choice import Places
from megaswitch.layers.moe.layer import queues
from megaswitch.layers.moe.plan import make_plan
from megaswitch.layers.moe.routers.switch import pick
from megaswitch.layers.moe.routers.top2 import pick_two
from megaswitch.layers.moe.scores import Scores
from megaswitch.layers.moe.statistics import Tokens, aux_loss, statistics, z_loss
from megaswitch.layers.weight_work import WeightWork
from megaswitch.model.transformer import alone
from megaswitch.ops.ops import Ops
from megaswitch.ops.reference.router import Jitter

_FACTOR = 1.25
_JITTER = 0.01
_USES = ("route", "route_gradient", "queue", "count_choices")
_TABLES = "one-hot and cumsum"
_ALONE = alone(torch.device("cpu")).tp


def cases(size: Size) -> list[Case]:
    """4,096 tokens in groups of 512, from 8 to 2,048 experts, of which a token has one or two."""
    top1 = [_of_logits(size, E, 1) for E in ([4] if size.quick else [8, 64, 128, 2048])]
    top2 = [_of_logits(size, E, 2) for E in ([4] if size.quick else [64, 2048])]
    of_tokens = [_of_tokens(size, E) for E in ([4] if size.quick else [8, 128])]
    return [*top1, *top2, _of_logits(size, size.of(64, 4), 1, whole=False), *of_tokens]


@dataclass(frozen=True)
class _Shape:
    G: int
    S: int
    E: int
    K: int

    @property
    def capacity(self) -> int:
        return max(1, round(_FACTOR * self.K * self.S / self.E))

    def places(self, whole: bool) -> Places:
        group_T = torch.arange(self.G).repeat_interleave(self.S)
        return Places(group_T, torch.ones(self.G * self.S, dtype=torch.bool), self.G, whole)


def _shape(size: Size, E: int, K: int) -> _Shape:
    return _Shape(size.of(8, 2), size.of(512, 16), E, K)


def _of_logits(size: Size, E: int, K: int, whole: bool = True) -> Case:
    shape = _shape(size, E, K)
    tokens, places = shape.G * shape.S, shape.places(whole)
    logits = normal(tokens, E, dtype=torch.float32)

    def ours(ops: Ops) -> Work:
        return forward_backward(lambda logits_TE: _routed(Scores(logits_TE, places, ops=ops), shape), [logits])

    return Case(
        f"router {tokens}x{E}" + f" top-{K}" * (K > 1) + ", groups on several ranks" * (not whole),
        ours,
        _USES,
        {_TABLES: lambda: forward_backward(lambda logits_TE: _tables(logits_TE, shape), [logits])},
        bytes=4.0 * tokens * E * 4,
    )


def _of_tokens(size: Size, E: int) -> Case:
    shape, D = _shape(size, E, 1), size.of(768, 16)
    tokens, places = shape.G * shape.S, shape.places(True)
    x = normal(tokens, D, dtype=size.dtype)
    weight = normal(D, E, dtype=torch.float32, scale=D**-0.5)
    jitter = Jitter(torch.arange(tokens), _JITTER)

    def ours(ops: Ops) -> Work:
        work = WeightWork(ops.products)

        def route(x_TD: Tensor, w_DE: Tensor) -> tuple[Tensor, Tensor]:
            return _routed(Scores(x_TD, places, w_DE, torch.float32, jitter, work, ops), shape)

        return forward_backward(route, [x, weight])

    def plain(x_TD: Tensor, w_DE: Tensor) -> tuple[Tensor, Tensor]:
        wide_TD = x_TD.float()
        moved_TD = wide_TD * torch.empty_like(wide_TD).uniform_(1.0 - _JITTER, 1.0 + _JITTER)
        return _tables(moved_TD @ w_DE, shape)

    return Case(
        f"router of tokens {tokens}x{D}, jitter, {E}",
        ours,
        (*_USES, "tokens_gradient", "jitter", "products"),
        {_TABLES: lambda: forward_backward(plain, [x, weight])},
        bytes=3.0 * tokens * D * x.element_size() + 4.0 * tokens * E * 4,
        flops=6.0 * tokens * D * E,
    )


def _routed(scores: Scores, shape: _Shape) -> tuple[Tensor, Tensor]:
    """Gates of the tokens that are served, and the balance loss."""
    E, K, ops = shape.E, shape.K, scores.ops
    choice = pick(scores) if K == 1 else pick_two(scores, "all", 0.0, False, None)
    index_GSK = choice.index_TK.view(shape.G, shape.S, K)
    first, count_GKE = queues(choice.routed.queued, index_GSK, E, ops)
    kept_GSK = make_plan(index_GSK, E, shape.capacity, first=first, ops=ops).kept_GSK
    tokens = Tokens(*scores.places[:2], count_GKE)
    loss = aux_loss(choice, tokens, _ALONE)
    statistics(loss.share, z_loss(choice, tokens), choice, index_GSK, kept_GSK, tokens, ops)
    return torch.where(kept_GSK.view(-1, K), choice.gate_TK, 0.0), loss.own


def _tables(logits_TE: Tensor, shape: _Shape) -> tuple[Tensor, Tensor]:
    """Likewise by tables."""
    E, K, capacity = shape.E, shape.K, shape.capacity
    probs_GSE = torch.softmax(logits_TE, -1).view(shape.G, shape.S, E)
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
