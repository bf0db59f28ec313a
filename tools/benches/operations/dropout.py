"""Dropout, ours by the stateless generator, the library's by a generator with a state.

N tokens, F features.
"""

import torch
from torch.nn import functional as F

from benches.operations.case import COMPILED, Case, Size, forward_backward, normal
from megaswitch.ops.ops import Ops

_RATE = 0.1


def cases(size: Size) -> list[Case]:
    """4,096 tokens with 2,048 hidden units."""
    N, width = size.of(4096, 16), size.of(2048, 32)
    x = normal(N, width, dtype=size.dtype)
    states_N = torch.randint(0, 1 << 32, (N,), generator=torch.Generator().manual_seed(0))
    return [
        Case(
            f"dropout {N}x{width}",
            lambda ops: forward_backward(ops.dropout, [x], [states_N, _RATE, 0]),
            ("dropout",),
            {
                "F.dropout": lambda: forward_backward(F.dropout, [x], [_RATE, True]),
                COMPILED: lambda: forward_backward(torch.compile(Ops().dropout), [x], [states_N, _RATE, 0]),
            },
            bytes=4.0 * N * width * size.dtype.itemsize,
        )
    ]
