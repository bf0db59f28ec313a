"""Tokens to the order of their experts and back, gates multiplied in, forward and backward, without the experts.

T tokens, D width, E experts.
"""

import torch
from torch import Tensor

from benches.operations.case import Case, Size, Work, forward_backward, normal
from megaswitch.layers.moe.dispatch import make_route
from megaswitch.layers.weight_work import WeightWork
from megaswitch.model.transformer import alone
from megaswitch.ops.ops import Ops


def cases(size: Size) -> list[Case]:
    """4,096 tokens of width 512, 64 experts."""
    T, D, E = size.of(4096, 16), size.of(512, 32), size.of(64, 4)
    x_TD, gate_T = normal(T, D, dtype=size.dtype), normal(T, dtype=torch.float32)
    index_T = torch.randint(0, E, (T,), generator=torch.Generator().manual_seed(0))
    kept_T, ep, work = torch.ones(T, dtype=torch.bool), alone(torch.device("cpu")).ep, WeightWork(eager=True)

    def by_expert(x_TD: Tensor, gate_T: Tensor) -> Tensor:
        out = torch.zeros_like(x_TD)
        for expert in range(E):
            rows = (index_T == expert).nonzero().flatten()
            out = out.index_add(0, rows, x_TD[rows] * gate_T[rows, None].to(x_TD.dtype))
        return out

    def ours(ops: Ops) -> Work:
        def there_and_back(x_TD: Tensor, gate_T: Tensor) -> Tensor:
            route = make_route(index_T, kept_T, E, ep, ops)
            rows = route.by_expert(route.send(x_TD, work).wait())
            return route.home(rows, gate_T.unsqueeze(1), work)

        return forward_backward(there_and_back, [x_TD, gate_T])

    return [
        Case(
            f"permute {T}x{D}, {E} experts",
            ours,
            ("lane_order", "permute", "unpermute"),
            {"index_add by expert": lambda: forward_backward(by_expert, [x_TD, gate_T])},
            bytes=8.0 * T * D * size.dtype.itemsize,
        )
    ]
