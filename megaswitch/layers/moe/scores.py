"""The router's pass over the tokens, which a routing algorithm calls with its noise and its number of choices.

Kept for the backward are the tokens as they came and their logits: jitter is drawn again and probabilities are computed
again. The matrix's gradient is work (see `layers/weight_work.py`).

T local tokens, D d_model, G groups, E experts, K choices of a token.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from megaswitch.layers.moe.choice import Places
from megaswitch.layers.weight_work import WeightWork, add_weight_grad, weight_grad
from megaswitch.ops.ops import BY_DEFINITION, Ops
from megaswitch.ops.reference.router import Jitter, Queued, Routed, Scored


@dataclass(frozen=True)
class Scores:
    """What experts are chosen by.

    Args:
        x_TD: the tokens, or where there is no matrix their logits.
        places: where they belong.
        weight_DE: the router's matrix.
        dtype: the product's type; logits are in at least float32.
        jitter: of the tokens, in that type.
        work: takes the matrix's gradient.
        ops: what computes.
    """

    x_TD: Tensor
    places: Places
    weight_DE: Tensor | None = None
    dtype: torch.dtype = torch.float32
    jitter: Jitter | None = None
    work: WeightWork = field(default_factory=WeightWork)
    ops: Ops = BY_DEFINITION

    def route(self, noise_TE: Tensor | None, choices: int) -> Routed:
        """See `ops/reference/router.py`; tokens and matrix get gradients from logits, gates, log sum exp and sums."""
        given = (self.x_TD, self.weight_DE, self, noise_TE, choices)
        *routed, place_T, count_GKE = _Route.apply(*given)  # type: ignore[no-untyped-call]
        logits_TE, index_TK, gate_TK, log_z_T, entropy_T, probs_GE = routed
        queued = Queued(place_T, count_GKE) if self.places.whole else None
        return Routed(logits_TE, index_TK, gate_TK, log_z_T, entropy_T, probs_GE, queued)


def jittered(x_TD: Tensor, jitter: Jitter | None, dtype: torch.dtype, ops: Ops) -> Tensor:
    """The tokens in that type, with jitter where there is one."""
    x_TD = x_TD.to(dtype)
    return x_TD if jitter is None else ops.jitter(x_TD, *jitter)


class _Route(torch.autograd.Function):
    """Of the scores nothing is held but what is saved, so that recomputation can do without the tokens."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weight_DE: Tensor | None, scores: Scores, noise_TE: Tensor | None, choices: int
    ) -> tuple[Tensor | None, ...]:
        matrix_DE = None if weight_DE is None else weight_DE.to(scores.dtype)
        scored = Scored(x_TD, matrix_DE, scores.jitter)
        *routed, queued = scores.ops.route(scored, noise_TE, *scores.places, choices)
        logits_TE, index_TK, _, log_z_T, entropy_T, _ = routed
        states_T, ctx.size = (None, None) if scores.jitter is None else scores.jitter
        tokens = (None if weight_DE is None else x_TD, states_T)
        ctx.save_for_backward(*tokens, logits_TE, log_z_T, index_TK, *scores.places[:2])
        ctx.weight, ctx.dtype, ctx.work, ctx.ops = weight_DE, scores.dtype, scores.work, scores.ops
        ctx.shapes = [part.shape for part in routed]
        ctx.set_materialize_grads(False)
        integers = (index_TK, *(queued or ()))
        ctx.mark_non_differentiable(entropy_T, *integers)
        return (*routed, *(queued or (None, None)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x_TD, states_T, logits_TE, *rest = ctx.saved_tensors
        of_logits_TE, _, *given = grads[:6]
        of_gate_TK, of_log_z_T, _, of_probs_GE = (
            logits_TE.new_zeros(shape) if grad is None else grad
            for grad, shape in zip(given, ctx.shapes[2:], strict=True)
        )
        d_TE = ctx.ops.route_gradient(logits_TE, *rest, of_gate_TK, of_log_z_T, of_probs_GE)
        if of_logits_TE is not None:
            d_TE += of_logits_TE
        if ctx.weight is None:
            return d_TE, None, None, None, None
        d_TE, dtype, ops = d_TE.to(ctx.dtype), ctx.dtype, ctx.ops
        jitter = None if states_T is None else Jitter(states_T, ctx.size)
        products, of_weight_DE, of_x_TD = ctx.work.products, None, None

        def add(into_DE: Tensor) -> None:
            add_weight_grad(into_DE, jittered(x_TD, jitter, dtype, ops), d_TE, products)

        if ctx.needs_input_grad[1]:
            of_weight_DE = weight_grad(ctx.weight, ctx.work, add)
        if ctx.needs_input_grad[0]:
            of_x_TD = ops.tokens_gradient(d_TE, ctx.weight.to(dtype), jitter, x_TD.dtype)
        return of_x_TD, of_weight_DE, None, None, None
