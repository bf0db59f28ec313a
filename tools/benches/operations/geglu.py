"""GEGLU of two products, and its gradients, without the products; ours are in their place, where they are put first.

N tokens, F features.
"""

import torch

from benches.operations.case import COMPILED, Case, Size, forward_backward, normal
from benches.timing import Work
from megaswitch.ops.cpp.load import cpp_kernels
from megaswitch.ops.ops import Ops
from megaswitch.ops.reference.activation import geglu


def cases(size: Size) -> list[Case]:
    """4,096 tokens with 2,048 hidden units."""
    N, width = size.of(4096, 16), size.of(2048, 32)
    gate, x = normal(N, width, dtype=size.dtype), normal(N, width, dtype=size.dtype, scale=0.5)

    def ours(ops: Ops) -> Work:
        forward = geglu if ops.name == "reference" else cpp_kernels().geglu
        parts, grad = (gate.detach(), x.detach()), torch.ones_like(x).detach()
        places = [torch.empty_like(part) for part in parts]

        def once() -> None:
            for place, part in zip(places, parts, strict=True):
                place.copy_(part)
            forward(places[0], places[1])
            ops.products.geglu_gradient_(places[0], places[1], grad)

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
