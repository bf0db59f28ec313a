"""The operations that NVIDIA apex does: norms and AdamW; Triton does the rest.

B sequences, L tokens, D d_model, N elements.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megaswitch.ops.apex.load import Apex
from megaswitch.ops.fused.backend import fused_ops
from megaswitch.ops.ops import Ops
from megaswitch.ops.reference import adamw as reference
from megaswitch.ops.reference.adamw import AdamStep
from megaswitch.ops.reference.rms_norm import EPSILON


def apex_ops(apex: Any) -> Ops:
    """Operations by apex (`Apex`), and by Triton where it has none. Where there are kernels' shapes alone, apex's are
    those of Triton's."""
    if not isinstance(apex, Apex):
        return fused_ops("apex", apex)
    return replace(
        fused_ops("apex", apex.triton),
        rms_norm=partial(rms_norm, apex),
        add_rms_norm=partial(add_rms_norm, apex),
        adamw_=partial(adamw_, apex),
    )


def rms_norm(apex: Apex, x_BLD: Tensor, w_D: Tensor) -> Tensor:
    """`ops.reference.rms_norm.rms_norm` by `apex.normalization`."""
    out: Tensor = apex.fused_rms_norm_affine(x_BLD, w_D.to(x_BLD.dtype), w_D.shape, EPSILON)
    return out


def add_rms_norm(apex: Apex, x_BLD: Tensor, y_BLD: Tensor, w_D: Tensor) -> tuple[Tensor, Tensor]:
    """`ops.reference.rms_norm.add_rms_norm`; apex has no norm with the addition."""
    total_BLD = x_BLD + y_BLD
    return total_BLD, rms_norm(apex, total_BLD, w_D)


def adamw_(
    apex: Apex,
    weights_N: Tensor,
    grad_N: Tensor,
    first_N: Tensor,
    second_N: Tensor,
    rounded_N: Tensor | None,
    step: AdamStep,
) -> None:
    """`ops.reference.adamw.adamw_` by the kernel of `apex.optimizers.FusedAdam`, and itself where tensors differ in
    type."""
    tensors = (grad_N, weights_N, first_N, second_N)
    if len({tensor.dtype for tensor in tensors}) > 1:
        return reference.adamw_(weights_N, grad_N, first_N, second_N, rounded_N, step)
    overflow = torch.zeros(1, dtype=torch.int32, device=weights_N.device)
    decoupled = bias_correction = 1
    numbers = (step.lr, step.beta1, step.beta2, step.eps, step.count, decoupled, bias_correction, step.weight_decay)
    apex.multi_tensor_applier(apex.multi_tensor_adam, overflow, [[tensor] for tensor in tensors], *numbers)
    if rounded_N is not None:
        rounded_N.copy_(weights_N)
