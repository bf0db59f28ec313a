"""The operations that the C++ kernels do faster than torch on a CPU."""

from functools import partial
from typing import Any

from megaswitch.ops.fused.dropout import dropout, features_uniform
from megaswitch.ops.fused.rms_norm import add_rms_norm, rms_norm
from megaswitch.ops.ops import Ops


def cpp_ops(kernels: Any) -> Ops:
    """Operations by these kernels; what is not named stays torch's."""
    return Ops(
        name="cpp",
        rms_norm=partial(rms_norm, kernels),
        add_rms_norm=partial(add_rms_norm, kernels),
        dropout=partial(dropout, kernels),
        features_uniform=partial(features_uniform, kernels),
    )
