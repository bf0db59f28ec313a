"""RMSNorm, alone and with the residual stream's addition before it.

N tokens, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from benches.operations.case import COMPILED, Case, Size, forward_backward, normal
from megaswitch.ops.reference.rms_norm import EPSILON, add_rms_norm, rms_norm


def cases(size: Size) -> list[Case]:
    """4,096 tokens of width 512."""
    N, D = size.of(4096, 16), size.of(512, 32)
    x, y, w = (normal(*shape, dtype=size.dtype) for shape in ((N, D), (N, D), (D,)))
    numbers = float(N * D * size.dtype.itemsize)
    return [
        Case(
            f"rms_norm {N}x{D}",
            lambda ops: forward_backward(ops.rms_norm, [x, w]),
            ("rms_norm",),
            {
                "F.rms_norm": lambda: forward_backward(_library, [x, w]),
                COMPILED: lambda: forward_backward(torch.compile(rms_norm), [x, w]),
            },
            bytes=5 * numbers,
        ),
        Case(
            f"add_rms_norm {N}x{D}",
            lambda ops: forward_backward(ops.add_rms_norm, [x, y, w]),
            ("add_rms_norm",),
            {
                "F.rms_norm": lambda: forward_backward(_library_with_addition, [x, y, w]),
                COMPILED: lambda: forward_backward(torch.compile(add_rms_norm), [x, y, w]),
            },
            bytes=8 * numbers,
        ),
    ]


def _library(x_ND: Tensor, w_D: Tensor) -> Tensor:
    return F.rms_norm(x_ND, w_D.shape, w_D, EPSILON)


def _library_with_addition(x_ND: Tensor, y_ND: Tensor, w_D: Tensor) -> tuple[Tensor, Tensor]:
    total_ND = x_ND + y_ND
    return total_ND, _library(total_ND, w_D)
