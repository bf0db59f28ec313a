"""Routing in one pass over the tokens forward, and one over their logits backward.

Jitter, the product that makes the logits, softmax, choices, gates, places in queues and sums of probabilities: what the
pass leaves in memory of the size of the tokens' inputs or logits is the logits. Places are not of this pass where a
group's tokens lie on several ranks, whose choices have to be known first.

T tokens, D d_model, G groups of tokens, E experts, K choices a token.
"""

from typing import Any

import torch
from torch import Tensor

from megaswitch.ops.library import Kernel
from megaswitch.ops.reference import router as reference
from megaswitch.ops.reference.router import Jitter, Queued, Routed, Scored
from megaswitch.utils.precision import at_least_float32


def _forward_shapes(
    x: Tensor,
    weight: Tensor | None,
    states: Tensor | None,
    size: float,
    noise: Tensor | None,
    group: Tensor,
    real: Tensor,
    num_groups: int,
    whole: bool,
    choices: int,
) -> tuple[Tensor, ...]:
    tokens, experts = x.shape[0], (x if weight is None else weight).shape[1]
    like = x if weight is None else weight.new_empty(0, dtype=at_least_float32(weight.dtype))
    logits = like.new_empty(0 if weight is None else tokens, experts)
    index, gate = (kind.new_empty(tokens, choices) for kind in (group, like))
    log_z, entropy = (like.new_empty(tokens) for _ in range(2))
    place = group.new_empty(tokens if whole else 0)
    count = group.new_empty(num_groups if whole else 0, choices, experts)
    return logits, index, gate, log_z, entropy, like.new_empty(num_groups, experts), place, count


def _forward_flops(x: Tensor, weight: Tensor | None, *_: Any, **__: Any) -> int:
    return 0 if weight is None else 2 * x.numel() * weight.shape[1]


def _backward_shapes(logits: Tensor, *_: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


def _tokens_shapes(grad: Tensor, weight: Tensor, states: Tensor | None, size: float, dtype: torch.dtype) -> Tensor:
    return grad.new_empty(grad.shape[0], weight.shape[0], dtype=dtype)


def _tokens_flops(grad: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * grad.numel() * weight.shape[0]


KERNELS = (
    Kernel(
        "route_forward",
        "(Tensor x, Tensor? weight, Tensor? states, float size, Tensor? noise, Tensor group, Tensor real,"
        " int num_groups, bool whole, int choices)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _forward_shapes,
        _forward_flops,
    ),
    Kernel(
        "route_backward",
        "(Tensor logits, Tensor log_z, Tensor index, Tensor group, Tensor real, Tensor grad_gate, Tensor grad_log_z,"
        " Tensor grad_probs) -> Tensor",
        _backward_shapes,
    ),
    Kernel(
        "tokens_gradient",
        "(Tensor grad, Tensor weight, Tensor? states, float size, ScalarType dtype) -> Tensor",
        _tokens_shapes,
        _tokens_flops,
    ),
)


def route(
    kernels: Any,
    scored: Scored,
    noise_TE: Tensor | None,
    group_T: Tensor,
    real_T: Tensor,
    num_groups: int,
    whole: bool,
    choices: int,
) -> Routed:
    """`ops.reference.router.route` by these kernels, without a gradient; itself for logits narrower than float32."""
    places = (group_T, real_T, num_groups, whole, choices)
    x_TD, weight_DE, jitter = scored
    if weight_DE is None and x_TD.dtype != at_least_float32(x_TD.dtype):
        return reference.route(scored, noise_TE, *places)
    if noise_TE is not None:
        noise_TE = noise_TE.to(at_least_float32((x_TD if weight_DE is None else weight_DE).dtype))
    states_T, size = (None, 0.0) if jitter is None else jitter
    *routed, place_T, count_GKE = kernels.route_forward(x_TD, weight_DE, states_T, size, noise_TE, *places)
    logits_TE, index_TK, gate_TK, log_z_T, entropy_T, probs_GE = routed
    if weight_DE is None:
        logits_TE = x_TD
    queued = Queued(place_T, count_GKE) if whole else None
    return Routed(logits_TE, index_TK, gate_TK, log_z_T, entropy_T, probs_GE, queued)


def route_gradient(kernels: Any, logits_TE: Tensor, *rest: Tensor) -> Tensor:
    """`ops.reference.router.route_gradient` likewise."""
    if logits_TE.dtype != at_least_float32(logits_TE.dtype):
        return reference.route_gradient(logits_TE, *rest)
    grad_TE: Tensor = kernels.route_backward(logits_TE, *rest)
    return grad_TE


def tokens_gradient(
    kernels: Any, grad_TE: Tensor, weight_DE: Tensor, jitter: Jitter | None, dtype: torch.dtype
) -> Tensor:
    """`ops.reference.router.tokens_gradient` likewise."""
    states_T, size = (None, 0.0) if jitter is None else jitter
    grad_TD: Tensor = kernels.tokens_gradient(grad_TE, weight_DE, states_T, size, dtype)
    return grad_TD
