"""Both products of the experts with the activation between them; weights' gradients are added up in kept memory.

N tokens sorted by expert, E experts, D width, F hidden width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from benches.operations.case import Case, Make, Size, Work, normal
from megaswitch.layers.weight_work import WeightWork, grouped_product, hidden_units
from megaswitch.ops.ops import Ops


def cases(size: Size) -> list[Case]:
    """4,096 tokens at 8, 64 and 128 experts."""
    return [_case(size, E) for E in ([4] if size.quick else [8, 64, 128])]


def _case(size: Size, E: int) -> Case:
    N, D, width = size.of(4096, 16), size.of(512, 32), size.of(2048, 64)
    x_ND, grad_ND = (normal(N, D, dtype=size.dtype) for _ in range(2))
    wi_EDF = normal(E, D, width, dtype=size.dtype, scale=D**-0.5)
    wo_EFD = normal(E, width, D, dtype=size.dtype, scale=width**-0.5)
    counts = [N // E] * E
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)

    def ours(ops: Ops) -> Work:
        work = WeightWork(ops.products, eager=True)
        for weight in (wi_EDF, wo_EFD):
            weight.main_grad = torch.zeros_like(weight, dtype=torch.float32)  # type: ignore[attr-defined]

        def once() -> None:
            hidden = hidden_units(x_ND, wi_EDF, None, work, counts)
            grouped_product(hidden, wo_EFD, counts, work).backward(grad_ND.detach())
            x_ND.grad = None

        return once

    def by_group() -> Tensor:
        return F.grouped_mm(F.relu(F.grouped_mm(x_ND, wi_EDF, offs=ends)), wo_EFD, offs=ends)

    def by_expert() -> Tensor:
        parts = zip(x_ND.split(counts), wi_EDF, wo_EFD, strict=True)
        return torch.cat([F.relu(x @ wi) @ wo for x, wi, wo in parts])

    def library(forward: Make) -> Work:
        def once() -> None:
            out = forward()
            assert isinstance(out, Tensor)
            torch.autograd.grad(out, [x_ND, wi_EDF, wo_EFD], grad_ND.detach())

        return once

    return Case(
        f"experts {E}, {N}x{D}x{width}",
        ours,
        ("products",),
        {"F.grouped_mm": lambda: library(by_group), "a loop": lambda: library(by_expert)},
        flops=3 * 4.0 * N * D * width,
        bytes=3 * 2.0 * E * D * width * size.dtype.itemsize + 2.0 * E * D * width * 4,
    )
