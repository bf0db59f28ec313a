"""Cross-entropy with z-loss over the whole vocabulary, by itself and behind the output product.

N tokens, V vocabulary, D d_model.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from benches.operations.case import COMPILED, Case, Size, Work, forward_backward, normal
from megaswitch.layers.cross_entropy import Goal, cross_entropy, tokens_of_block
from megaswitch.layers.weight_work import WeightWork
from megaswitch.model.transformer import alone
from megaswitch.ops.ops import Ops

_Z = 1e-4


def cases(size: Size) -> list[Case]:
    """The decoder's 114 tokens of 8 sequences."""
    N, V, D = size.of(912, 16), size.of(32128, 100), size.of(256, 8)
    target_N = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(0))
    return [_of_logits(size, target_N, V), _of_products(size, target_N, V, D)]


def _of_logits(size: Size, target_N: Tensor, V: int) -> Case:
    N = target_N.shape[0]
    logits_NV = normal(N, V, dtype=torch.float32)
    narrow_NV = logits_NV.detach().to(size.dtype, copy=True).requires_grad_()

    def ours(ops: Ops) -> Work:
        plain_NV, into_NV, ones_N = logits_NV.detach(), torch.empty(N, V, dtype=size.dtype), torch.ones(N)

        def work() -> None:
            found = ops.cross_entropy_statistics(plain_NV, target_N)
            ops.cross_entropy_gradient(plain_NV, target_N, found.sum_N.log() + found.greatest_N, ones_N, _Z, into_NV)

        return work

    return Case(
        f"cross_entropy {N}x{V}",
        ours,
        ("cross_entropy_statistics", "cross_entropy_gradient"),
        {
            "F.cross_entropy and logsumexp": lambda: forward_backward(_losses, [narrow_NV], [target_N]),
            COMPILED: lambda: forward_backward(torch.compile(_losses), [narrow_NV], [target_N]),
        },
        {"F.cross_entropy, no z-loss": lambda: forward_backward(_without, [narrow_NV], [target_N])},
        bytes=N * V * (8.0 + size.dtype.itemsize),
    )


def _of_products(size: Size, target_N: Tensor, V: int, D: int) -> Case:
    N = target_N.shape[0]
    x_ND, table_VD = normal(N, D, dtype=size.dtype), normal(V, D, dtype=size.dtype, scale=0.1)

    def ours(ops: Ops) -> Work:
        own_VD = torch.nn.Parameter(table_VD.detach().clone())
        own_VD.main_grad = torch.zeros(V, D)  # type: ignore[attr-defined]
        tp = alone(torch.device("cpu")).tp
        goal = Goal(target_N, torch.full((N,), 1.0 / N), _Z, tp, tokens_of_block(N, V, size.dtype))
        job = WeightWork(ops.products, eager=True)

        def work() -> None:
            cross_entropy(x_ND, own_VD, goal, job, ops, transposed=True).objective.backward()

        return work

    def theirs(x_ND: Tensor, table_VD: Tensor, target_N: Tensor) -> Tensor:
        return _losses(F.linear(x_ND, table_VD), target_N).mean()

    leaves = [x_ND, table_VD]
    return Case(
        f"head and cross_entropy {N}x{D}x{V}",
        ours,
        ("cross_entropy_statistics", "cross_entropy_gradient", "products"),
        {
            "F.linear, F.cross_entropy": lambda: forward_backward(theirs, leaves, [target_N]),
            COMPILED: lambda: forward_backward(torch.compile(theirs), leaves, [target_N]),
        },
        flops=6.0 * N * V * D,
    )


def _losses(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    wide_NV = logits_NV.float()
    return F.cross_entropy(wide_NV, target_N, reduction="none") + _Z * torch.logsumexp(wide_NV, -1).square()


def _without(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV, target_N, reduction="none")
