"""Finds NVIDIA apex, or says why it is not to be had."""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from megaswitch.ops.triton.load import triton_kernels
from megaswitch.ops.unavailable import Unavailable

_BUILD = "build it from https://github.com/NVIDIA/apex with its C++ and CUDA extensions, or take ops.backend=triton"


@dataclass(frozen=True)
class Apex:
    """What is used of it, and the Triton kernels for the rest."""

    fused_rms_norm_affine: Any
    multi_tensor_adam: Any
    multi_tensor_applier: Any
    triton: Any


@cache
def apex_kernels() -> Apex:
    """Unavailable without a GPU, without apex, or where it lacks its compiled parts."""
    if find_spec("apex") is None:
        raise Unavailable(f"NVIDIA apex is not installed: {_BUILD}")
    if not torch.cuda.is_available():
        raise Unavailable("torch finds no CUDA device here")
    try:
        normalization = import_module("apex.normalization")
        import_module("fused_layer_norm_cuda")
        applier = import_module("apex.multi_tensor_apply").multi_tensor_applier
        compiled = import_module("amp_C")
    except ImportError as error:
        text = "this apex is not NVIDIA's (PyPI's is another project), or it was built without its extensions"
        raise Unavailable(f"{text} ({error}): {_BUILD}") from None
    try:
        norm, adam = normalization.fused_rms_norm_affine, compiled.multi_tensor_adam
    except AttributeError as error:
        raise Unavailable(f"this apex is too old ({error}): {_BUILD}") from None
    return Apex(norm, adam, applier, triton_kernels())
