"""GEGLU of two products, and its gradients, without the products.

N tokens, F features.
"""

import torch

from benches.operations.case import COMPILED, Case, Size, Work, forward_backward, normal
from megaswitch.ops.cpp.load import cpp_kernels
from megaswitch.ops.ops import Ops
from megaswitch.ops.reference.activation import geglu


def cases(size: Size) -> list[Case]:
    """4,096 tokens with 2,048 hidden units."""
    N, width = size.of(4096, 16), size.of(2048, 32)
    gate, x = normal(N, width, dtype=size.dtype), normal(N, width, dtype=size.dtype, scale=0.5)

    def ours(ops: Ops) -> Work:
        forward = geglu if ops.name == "reference" else cpp_kernels().geglu
        parts = [part.detach().contiguous() for part in (torch.ones_like(x), gate, x)]

        def once() -> None:
            forward(*parts[1:])
            ops.products.geglu_gradient(*parts)

        return once

    return [
        Case(
            f"GEGLU {N}x{width}",
            ours,
            ("products",),
            {
                "F.gelu": lambda: forward_backward(geglu, [gate, x]),
                COMPILED: lambda: forward_backward(torch.compile(geglu), [gate, x]),
            },
            bytes=8.0 * N * width * size.dtype.itemsize,
        )
    ]
