"""Routing in one pass over the logits forward and one backward; no probabilities but the gates are kept.

Jitter is not of this pass: it multiplies the input of the product that the logits come from. Nor are places in queues
where a group's tokens lie on several ranks, whose choices have to be known first.

T tokens, G groups of tokens, E experts, K choices a token.
"""

from typing import Any

import torch
from torch import Tensor

from megaswitch.ops.library import Kernel
from megaswitch.ops.reference import router as reference
from megaswitch.ops.reference.router import Queued, Routed
from megaswitch.utils.precision import at_least_float32


def _forward_shapes(
    logits: Tensor, noise: Tensor | None, group: Tensor, real: Tensor, num_groups: int, whole: bool, choices: int
) -> tuple[Tensor, ...]:
    tokens, experts = logits.shape
    index, gate = (like.new_empty(tokens, choices) for like in (group, logits))
    log_z, entropy, greatest, inverse = (logits.new_empty(tokens) for _ in range(4))
    place = group.new_empty(tokens if whole else 0)
    count = group.new_empty(num_groups if whole else 0, choices, experts)
    return index, gate, log_z, entropy, logits.new_empty(num_groups, experts), place, count, greatest, inverse


def _backward_shapes(logits: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(logits)


KERNELS = (
    Kernel(
        "route_forward",
        "(Tensor logits, Tensor? noise, Tensor group, Tensor real, int num_groups, bool whole, int choices)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _forward_shapes,
    ),
    Kernel(
        "route_backward",
        "(Tensor logits, Tensor index, Tensor gate, Tensor greatest, Tensor inverse, Tensor group, Tensor real,"
        " Tensor grad_gate, Tensor grad_log_z, Tensor grad_probs) -> Tensor",
        _backward_shapes,
    ),
)


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_TE: Tensor,
        noise_TE: Tensor | None,
        group_T: Tensor,
        real_T: Tensor,
        num_groups: int,
        whole: bool,
        choices: int,
        kernels: Any,
    ) -> tuple[Tensor, ...]:
        *routed, greatest_T, inverse_T = kernels.route_forward(
            logits_TE, noise_TE, group_T, real_T, num_groups, whole, choices
        )
        index_TK, gate_TK, _, entropy_T, _, place_T, count_GKE = routed
        ctx.save_for_backward(logits_TE, index_TK, gate_TK, greatest_T, inverse_T, group_T, real_T)
        ctx.kernels = kernels
        ctx.mark_non_differentiable(index_TK, entropy_T, place_T, count_GKE)
        return tuple(routed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None, None, None]:
        _, grad_gate, grad_log_z, _, grad_probs, _, _ = grads
        d_TE = ctx.kernels.route_backward(*ctx.saved_tensors, grad_gate, grad_log_z, grad_probs)
        return d_TE, None, None, None, None, None, None, None


def route(
    kernels: Any,
    logits_TE: Tensor,
    noise_TE: Tensor | None,
    group_T: Tensor,
    real_T: Tensor,
    num_groups: int,
    whole: bool,
    choices: int,
) -> Routed:
    """`ops.reference.router.route` by these kernels, and itself for logits narrower than float32."""
    if logits_TE.dtype != at_least_float32(logits_TE.dtype):
        return reference.route(logits_TE, noise_TE, group_T, real_T, num_groups, whole, choices)
    if noise_TE is not None:
        noise_TE = noise_TE.to(logits_TE.dtype)
    given = (logits_TE, noise_TE, group_T, real_T, num_groups, whole, choices)
    index_TK, gate_TK, log_z_T, entropy_T, probs_GE, *queued = _Route.apply(*given, kernels)  # type: ignore[no-untyped-call]
    return Routed(index_TK, gate_TK, log_z_T, entropy_T, probs_GE, Queued(*queued) if whole else None)
