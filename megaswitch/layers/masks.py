"""Masks as additive biases in at least float32.

B sequences, L queries, M keys.
"""

import torch
from torch import Tensor

from megaswitch.utils.precision import at_least_float32


def _low(dtype: torch.dtype) -> float:
    """A bias that no softmax lets through, but finite: a row without any key must not become NaN."""
    return torch.finfo(dtype).min / 4


def key_bias(real_BM: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, M]: 0 where the key is a real token, very low elsewhere."""
    wide = at_least_float32(dtype)
    bias = torch.zeros(real_BM.shape, dtype=wide, device=real_BM.device)
    return bias.masked_fill_(~real_BM, _low(wide))[:, None, None, :]


def segment_bias(own_BL: Tensor, of_BM: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, L, M]: 0 where query and key are of the same sample of a packed row (have the same number), very low
    elsewhere."""
    wide = at_least_float32(dtype)
    other_BLM = own_BL[:, :, None] != of_BM[:, None, :]
    bias = torch.zeros(other_BLM.shape, dtype=wide, device=own_BL.device)
    return bias.masked_fill_(other_BLM, _low(wide))[:, None]


def causal_bias(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[1, 1, L, M]: 0 for keys up to the query, very low after it."""
    wide = at_least_float32(dtype)
    future = torch.ones(length, length, dtype=torch.bool, device=device).triu_(1)
    return torch.zeros(length, length, dtype=wide, device=device).masked_fill_(future, _low(wide))[None, None]
