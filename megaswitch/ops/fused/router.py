"""Top-1 routing in one pass over the logits forward and one backward; no probabilities are kept.

T tokens, G groups of tokens, E experts.
"""

from typing import Any

import torch
from torch import Tensor

from megaswitch.ops.library import Kernel
from megaswitch.ops.reference import router as reference
from megaswitch.ops.reference.router import Routed
from megaswitch.utils.precision import at_least_float32


def _forward_shapes(
    logits: Tensor, noise: Tensor | None, group: Tensor, real: Tensor, num_groups: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tokens, experts = logits.shape
    gate, log_z, entropy, greatest, inverse = (logits.new_empty(tokens) for _ in range(5))
    return group.new_empty(tokens), gate, log_z, entropy, logits.new_empty(num_groups, experts), greatest, inverse


def _backward_shapes(logits: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(logits)


KERNELS = (
    Kernel(
        "route_top1_forward",
        "(Tensor logits, Tensor? noise, Tensor group, Tensor real, int num_groups)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _forward_shapes,
    ),
    Kernel(
        "route_top1_backward",
        "(Tensor logits, Tensor index, Tensor greatest, Tensor inverse, Tensor group, Tensor real, Tensor grad_gate,"
        " Tensor grad_log_z, Tensor grad_probs) -> Tensor",
        _backward_shapes,
    ),
)


class _RouteTop1(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_TE: Tensor,
        noise_TE: Tensor | None,
        group_T: Tensor,
        real_T: Tensor,
        num_groups: int,
        kernels: Any,
    ) -> tuple[Tensor, ...]:
        *routed, greatest_T, inverse_T = kernels.route_top1_forward(logits_TE, noise_TE, group_T, real_T, num_groups)
        index_T, _, _, entropy_T, _ = routed
        ctx.save_for_backward(logits_TE, index_T, greatest_T, inverse_T, group_T, real_T)
        ctx.kernels = kernels
        ctx.mark_non_differentiable(index_T, entropy_T)
        return tuple(routed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        _, grad_gate, grad_log_z, _, grad_probs = grads
        d_TE = ctx.kernels.route_top1_backward(*ctx.saved_tensors, grad_gate, grad_log_z, grad_probs)
        return d_TE, None, None, None, None, None


def route_top1(
    kernels: Any, logits_TE: Tensor, noise_TE: Tensor | None, group_T: Tensor, real_T: Tensor, num_groups: int
) -> Routed:
    """`ops.reference.router.route_top1` by these kernels, and itself for logits narrower than float32."""
    if logits_TE.dtype != at_least_float32(logits_TE.dtype):
        return reference.route_top1(logits_TE, noise_TE, group_T, real_T, num_groups)
    if noise_TE is not None:
        noise_TE = noise_TE.to(logits_TE.dtype)
    out = _RouteTop1.apply(logits_TE, noise_TE, group_T, real_T, num_groups, kernels)  # type: ignore[no-untyped-call]
    return Routed(*out)
