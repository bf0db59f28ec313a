"""Attention with biases of relative positions that are learned, as in the encoder, the decoder, and across.

B sequences, Q queries, M keys, H heads, K width of a head, R distances.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benches.operations.case import Case, Size, Work, forward_backward, normal
from megaswitch.ops.bias import Bias
from megaswitch.ops.ops import Ops


def cases(size: Size) -> list[Case]:
    """8 sequences, 4 heads of 64."""
    s, t = size.of(512, 24), size.of(114, 10)
    return [
        _case("encoder", size, s, s, biased=True),
        _case("decoder", size, t, t, biased=True, causal=True),
        _case("cross", size, t, s),
    ]


def _case(name: str, size: Size, Q: int, M: int, *, biased: bool = False, causal: bool = False) -> Case:
    B, H, K = size.of(8, 2), size.of(4, 2), size.of(64, 16)
    q, k, v = (normal(B, length, H, K, dtype=size.dtype, scale=0.3) for length in (Q, M, M))
    leaves = [q, k, v]
    if biased:
        leaves.append(normal(H, Q + M - 1, dtype=torch.float32))

    def ours(ops: Ops) -> Work:
        def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None = None) -> Tensor:
            return ops.attention(q, k, v, Bias(by_distance_HR=table, causal=causal), None)

        return forward_backward(attend, leaves)

    def library(core: Callable[..., Tensor], *, learned: bool = True) -> Work:
        def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor | None = None) -> Tensor:
            bias = _expand(table if learned or table is None else table.detach(), Q, M, causal, q.dtype)
            return core(*(x.transpose(1, 2) for x in (q, k, v)), bias).transpose(1, 2)

        return forward_backward(attend, leaves if learned else leaves[:3], [] if learned else leaves[3:])

    unequal = {"SDPA, bias without gradient": lambda: library(_sdpa, learned=False)} if biased else {}
    return Case(
        f"attention {name} {B}x{H}x{Q}x{M}x{K}",
        ours,
        ("attention",),
        {"softmax(q k + bias) v": lambda: library(_eager), "SDPA": lambda: library(_sdpa)},
        unequal,
        flops=3 * 4.0 * B * H * Q * M * K,
    )


def _expand(table_HR: Tensor | None, Q: int, M: int, causal: bool, dtype: torch.dtype) -> Tensor | None:
    if table_HR is None:
        return None
    bias_HQM = table_HR.to(dtype).unfold(1, M, 1).flip(1)
    if causal:
        future_QM = torch.ones(Q, M, dtype=torch.bool).triu(1)
        bias_HQM = bias_HQM.masked_fill(future_QM, torch.finfo(dtype).min)
    return bias_HQM.unsqueeze(0)


def _eager(q_BHQK: Tensor, k_BHMK: Tensor, v_BHMK: Tensor, bias: Tensor | None) -> Tensor:
    """As transformers' "eager" does it."""
    logits = q_BHQK @ k_BHMK.transpose(2, 3)
    return torch.softmax(logits if bias is None else logits + bias, -1) @ v_BHMK


def _sdpa(q_BHQK: Tensor, k_BHMK: Tensor, v_BHMK: Tensor, bias: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q_BHQK, k_BHMK, v_BHMK, bias, scale=1.0)
