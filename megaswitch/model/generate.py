"""Writing continuations: greedily, by sampling, or by beam search.

B sequences, T tokens, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megaswitch.model.beam import beam_search
from megaswitch.model.decoding import Decoding
from megaswitch.model.sampling import draw, row_keys
from megaswitch.model.stage import EOS
from megaswitch.utils.errors import UserError
from megaswitch.utils.host import host_read

START = 0


@dataclass(frozen=True)
class Search:
    """How tokens are chosen.

    Args:
        num_beams: continuations that beam search follows at once; 1 searches none.
        temperature: 0 takes the likeliest token (or beam search); above 0 logits are divided by it and sampled.
        top_k: sampling is among so many of the likeliest tokens; 0 among all.
        top_p: sampling is among the fewest likeliest tokens whose probabilities reach this sum.
        seed: of sampling.
        length_penalty: beam search compares sums of log probabilities divided by length to this power.
    """

    num_beams: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    length_penalty: float = 1.0


def refuse_unusable(search: Search, max_tokens: int) -> None:
    """UserError that tells everything that is wrong with a search, with what to do."""
    greedy = search.temperature == 0.0
    rules = (
        (max_tokens >= 1, f"max_tokens is {max_tokens}; give 1 or more"),
        (search.num_beams >= 1, f"num_beams is {search.num_beams}; give 1 (no beam search) or more"),
        (0.0 <= search.temperature < float("inf"), f"temperature is {search.temperature}; give 0 or a number above it"),
        (search.top_k >= 0, f"top_k is {search.top_k}; give 0 (all tokens) or more"),
        (0.0 < search.top_p <= 1.0, f"top_p is {search.top_p}; give a number above 0 and up to 1"),
        (
            greedy or search.num_beams == 1,
            "beam search does not sample: set temperature=0 for it, or num_beams=1 to sample",
        ),
        (
            not greedy or (search.top_k == 0 and search.top_p == 1.0),
            "top_k and top_p are of sampling: set a temperature above 0",
        ),
    )
    wrong = [message for right, message in rules if not right]
    if wrong:
        raise UserError("; ".join(wrong))


@torch.no_grad()
def generate(decoding: Decoding, max_tokens: int, search: Search) -> Tensor:
    """Continuations [B, up to max_tokens] (int64), EOS included, 0 after it."""
    if search.num_beams > 1:
        return beam_search(decoding, START, max_tokens, search.num_beams, search.length_penalty)
    return _one_by_one(decoding, max_tokens, search)


def _one_by_one(decoding: Decoding, max_tokens: int, search: Search) -> Tensor:
    """Greedy, or sampled by numbers that depend on the seed, the sequence and the position alone."""
    key_B = None if search.temperature == 0.0 else row_keys(decoding.batch, search.seed)
    ids_BT = torch.full((decoding.rows, 1), START, device=decoding.device)
    ended_B = torch.zeros(decoding.rows, dtype=torch.bool, device=decoding.device)
    for position in range(max_tokens):
        logits_BV = decoding.next_logits(ids_BT)
        if key_B is None:
            next_B = logits_BV.argmax(-1)
        else:
            next_B = draw(logits_BV, key_B, position, search.temperature, search.top_k, search.top_p)
        next_B = next_B.masked_fill(ended_B, 0)
        ids_BT = torch.cat([ids_BT, next_B.unsqueeze(1)], 1)
        ended_B = ended_B | (next_B == EOS)
        if all(host_read("ended", ended_B)):
            break
    return ids_BT[:, 1:]
