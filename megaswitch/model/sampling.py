"""Drawing the next token from its distribution, as a pure function of a key and a position.

B sequences, V vocabulary.
"""

from collections import Counter

import torch
from torch import Tensor

from megaswitch.model.micro_batch import MicroBatch
from megaswitch.ops.reference.random import fold, start, to_uniform
from megaswitch.utils.host import host_read
from megaswitch.utils.seeds import named_seed


def row_keys(batch: MicroBatch, seed: int) -> Tensor:
    """Random states [B] that depend on the seed and on a sequence's real tokens, whatever stands beside it in the
    batch. The second, third, ... of equal sequences have states of their own."""
    ids, real = host_read("prompts", batch.encoder_ids_BS), host_read("prompts", batch.encoder_real_BS)
    seen: Counter[tuple[int, ...]] = Counter()
    keys = []
    for row, mask in zip(ids, real, strict=True):
        tokens = tuple(token for token, is_real in zip(row, mask, strict=True) if is_real)
        keys.append(start(named_seed(seed, "generate", seen[tokens], *tokens), batch.encoder_ids_BS.device))
        seen[tokens] += 1
    return torch.stack(keys)


def restricted(logits_BV: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities [B, V] in float64 after division by the temperature, among the `top_k` likeliest tokens (0: all),
    and of these the fewest that together have `top_p` of their probability; the lower id goes first on ties."""
    scaled_BV = logits_BV.double() / temperature
    sorted_BV, order_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
    if top_k:
        sorted_BV[:, top_k:] = float("-inf")
    probs_BV = torch.softmax(sorted_BV, -1)
    before_BV = probs_BV.cumsum(-1) - probs_BV
    out_BV = (before_BV >= top_p) if top_p < 1.0 else torch.zeros_like(before_BV, dtype=torch.bool)
    out_BV[:, 0] = False
    probs_BV = probs_BV.masked_fill(out_BV, 0.0)
    probs_BV = probs_BV / probs_BV.sum(-1, keepdim=True)
    return torch.zeros_like(probs_BV).scatter_(-1, order_BV, probs_BV)


def draw(
    logits_BV: Tensor, key_B: Tensor, position: int, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """One token id [B] (int64) a row: the first at which the summed probabilities pass the row's uniform number."""
    sum_BV = restricted(logits_BV, temperature, top_k, top_p).cumsum(-1)
    counter_1 = torch.full((1,), position, device=key_B.device)
    uniform_B1 = to_uniform(fold(key_B, counter_1)).double()
    # the sum's own end, not 1, so that rounding cannot leave the number beyond the last token
    return torch.searchsorted(sum_BV, uniform_B1 * sum_BV[:, -1:], right=True).squeeze(-1)
