"""Attention core of T5: no scaling by the head's width; logits and softmax in at least float32.

B sequences, Q queries, M keys, H heads, K width of a head.
"""

import torch
from torch import Tensor

from megaswitch.ops.bias import Bias, Drop
from megaswitch.ops.reference.random import drop, fold, to_uniform
from megaswitch.utils.precision import widen


def attention(q_BQHK: Tensor, k_BMHK: Tensor, v_BMHK: Tensor, bias: Bias, dropped: Drop | None) -> Tensor:
    """softmax(q k^T + bias) v as [B, Q, H, K] in v's dtype, with dropout of the weights where `dropped` is given."""
    q_BHQK, k_BHKM = widen(q_BQHK).transpose(1, 2), widen(k_BMHK).permute(0, 2, 3, 1)
    weights_BHQM = torch.softmax(_biased(q_BHQK @ k_BHKM, bias), -1).to(v_BMHK.dtype)
    if dropped is not None:
        key_M = torch.arange(k_BMHK.shape[1], device=k_BMHK.device)
        weights_BHQM = drop(weights_BHQM, dropped.rate, to_uniform(fold(dropped.states_BHQ, key_M)))
    return (weights_BHQM @ v_BMHK.transpose(1, 2)).transpose(1, 2)


def _biased(logits_BHQM: Tensor, bias: Bias) -> Tensor:
    """What no softmax lets through is very low but finite: a row without any key must not become NaN."""
    queries, keys = logits_BHQM.shape[-2:]
    low = torch.finfo(logits_BHQM.dtype).min / 4
    if bias.by_distance_HR is not None:
        logits_BHQM = logits_BHQM + bias.by_distance_HR.unfold(1, keys, 1).flip(1)
    hidden = _hidden(bias)
    if hidden is not None:
        logits_BHQM = logits_BHQM + torch.zeros_like(hidden, dtype=logits_BHQM.dtype).masked_fill_(hidden, low)
    if bias.causal:
        future_QM = torch.full((queries, keys), 2 * low, dtype=logits_BHQM.dtype, device=logits_BHQM.device)
        logits_BHQM = logits_BHQM + future_QM.triu_(1 + keys - queries)
    return logits_BHQM


def _hidden(bias: Bias) -> Tensor | None:
    """[B, 1, Q or 1, M]: keys that are not real or belong to another sample."""
    hidden = None if bias.real_BM is None else ~bias.real_BM[:, None, None]
    if bias.segments is None:
        return hidden
    of_BQ, of_BM = bias.segments
    other = of_BQ[:, None, :, None] != of_BM[:, None, None, :]
    return other if hidden is None else hidden | other
