"""Attention core of T5: no scaling by the head's width; logits and softmax in at least float32.

B sequences, Q queries, M keys, H heads, K width of a head.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from megaswitch.utils.precision import widen

Drop = Callable[[Tensor], Tensor]


def attention(q_BQHK: Tensor, k_BMHK: Tensor, v_BMHK: Tensor, bias: Tensor | None, drop: Drop | None) -> Tensor:
    """softmax(q k^T + bias) v as [B, Q, H, K] in v's dtype.

    `bias` is broadcast to [B, H, Q, M] and carries both the relative-position bias and the mask;
    `drop` is applied to the weights.
    """
    q_BHQK, k_BHKM = widen(q_BQHK).transpose(1, 2), widen(k_BMHK).permute(0, 2, 3, 1)
    logits_BHQM = q_BHQK @ k_BHKM
    if bias is not None:
        logits_BHQM = logits_BHQM + bias
    weights_BHQM = torch.softmax(logits_BHQM, -1).to(v_BMHK.dtype)
    if drop is not None:
        weights_BHQM = drop(weights_BHQM)
    return (weights_BHQM @ v_BMHK.transpose(1, 2)).transpose(1, 2)
