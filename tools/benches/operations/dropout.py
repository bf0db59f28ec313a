"""Dropout, ours by the stateless generator, the library's by a generator with a state; and the router's jitter.

N tokens, F features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from benches.operations.case import COMPILED, Case, Size, forward_backward, normal
from megaswitch.ops.ops import Ops

_RATE, _JITTER = 0.1, 0.01


def cases(size: Size) -> list[Case]:
    """4,096 tokens: dropout of 2,048 hidden units, jitter of inputs 768 wide."""
    N = size.of(4096, 16)
    states_N = torch.randint(0, 1 << 32, (N,), generator=torch.Generator().manual_seed(0))
    return [_dropout(size, N, states_N), _jitter(size, N, states_N)]


def _dropout(size: Size, N: int, states_N: Tensor) -> Case:
    width = size.of(2048, 32)
    x = normal(N, width, dtype=size.dtype)
    return Case(
        f"dropout {N}x{width}",
        lambda ops: forward_backward(ops.dropout, [x], [states_N, _RATE, 0]),
        ("dropout",),
        {
            "F.dropout": lambda: forward_backward(F.dropout, [x], [_RATE, True]),
            COMPILED: lambda: forward_backward(torch.compile(Ops().dropout), [x], [states_N, _RATE, 0]),
        },
        bytes=4.0 * N * width * size.dtype.itemsize,
    )


def _jitter(size: Size, N: int, states_N: Tensor) -> Case:
    width = size.of(768, 32)
    x = normal(N, width, dtype=size.dtype)

    def by_torch(x_NF: Tensor) -> Tensor:
        return x_NF * torch.empty_like(x_NF).uniform_(1.0 - _JITTER, 1.0 + _JITTER)

    return Case(
        f"jitter {N}x{width}",
        lambda ops: forward_backward(ops.jitter, [x], [states_N, _JITTER]),
        ("jitter",),
        {
            "uniform_ and a product": lambda: forward_backward(by_torch, [x]),
            COMPILED: lambda: forward_backward(torch.compile(Ops().jitter), [x], [states_N, _JITTER]),
        },
        bytes=4.0 * N * width * size.dtype.itemsize,
    )
