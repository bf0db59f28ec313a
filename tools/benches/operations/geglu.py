"""Both products of gated hidden units with GEGLU of them; weights' gradients are added up in kept memory.

N tokens, D width, F hidden width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benches.operations.case import COMPILED, Case, Size, Work, normal
from megaswitch.layers.weight_work import WeightWork, hidden_units
from megaswitch.ops.ops import Ops
from megaswitch.ops.reference.activation import geglu


def cases(size: Size) -> list[Case]:
    """4,096 tokens with 2,048 hidden units."""
    N, D, width = size.of(4096, 16), size.of(512, 32), size.of(2048, 64)
    x_ND, grad_NF = normal(N, D, dtype=size.dtype), normal(N, width, dtype=size.dtype).detach()
    gate_DF, wi_DF = (normal(D, width, dtype=size.dtype, scale=D**-0.5) for _ in range(2))

    def ours(ops: Ops) -> Work:
        work = WeightWork(ops.products, eager=True)
        for weight in (gate_DF, wi_DF):
            weight.main_grad = torch.zeros_like(weight, dtype=torch.float32)  # type: ignore[attr-defined]

        def once() -> None:
            hidden_units(x_ND, wi_DF, gate_DF, work).backward(grad_NF)
            x_ND.grad = None

        return once

    def plain(x: Tensor, gate: Tensor, wi: Tensor) -> Tensor:
        return geglu(x @ gate, x @ wi)

    def library(forward: Callable[..., Tensor]) -> Work:
        def once() -> None:
            torch.autograd.grad(forward(x_ND, gate_DF, wi_DF), [x_ND, gate_DF, wi_DF], grad_NF)

        return once

    return [
        Case(
            f"gated units {N}x{D}x{width}",
            ours,
            ("products",),
            {"F.gelu": lambda: library(plain), COMPILED: lambda: library(torch.compile(plain))},
            flops=3 * 4.0 * N * D * width,
            bytes=3 * 2.0 * 2 * D * width * size.dtype.itemsize,
        )
    ]
