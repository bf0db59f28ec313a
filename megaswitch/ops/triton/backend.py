"""The operations that the Triton kernels do on a GPU."""

from functools import partial
from typing import Any

from megaswitch.ops.fused.adafactor import passes
from megaswitch.ops.fused.attention import attention
from megaswitch.ops.fused.cross_entropy import cross_entropy_gradient_, cross_entropy_statistics
from megaswitch.ops.fused.dropout import dropout, features_uniform
from megaswitch.ops.fused.rms_norm import add_rms_norm, rms_norm
from megaswitch.ops.ops import Ops


def triton_ops(kernels: Any) -> Ops:
    """Operations by these kernels; what is not named stays torch's."""
    return Ops(
        name="triton",
        rms_norm=partial(rms_norm, kernels),
        add_rms_norm=partial(add_rms_norm, kernels),
        attention=partial(attention, kernels),
        dropout=partial(dropout, kernels),
        features_uniform=partial(features_uniform, kernels),
        cross_entropy_statistics=partial(cross_entropy_statistics, kernels),
        cross_entropy_gradient_=partial(cross_entropy_gradient_, kernels),
        adafactor=passes(kernels),
    )
