"""Beam search: the continuations of greatest (length-normalised) log probability among those that it follows.

B sequences, W beams of each, T tokens, V vocabulary.
"""

import torch
from torch import Tensor

from megaswitch.model.decoding import Decoding
from megaswitch.model.stage import EOS
from megaswitch.utils.host import host_read
from megaswitch.utils.precision import widen


class _Best:
    """The best ended continuation of each sequence so far."""

    def __init__(self, rows: int, max_tokens: int, penalty: float, device: torch.device) -> None:
        self.penalty, self.max_tokens = penalty, max_tokens
        self.score_B = torch.full((rows,), float("-inf"), dtype=torch.float64, device=device)
        self.ids_BT = torch.zeros((rows, max_tokens), dtype=torch.int64, device=device)
        self.length_B = torch.zeros(rows, dtype=torch.int64, device=device)

    def offer(self, ids_BWT: Tensor, log_BW: Tensor) -> None:
        """Continuations of one length and their log probabilities (-inf: none)."""
        length = ids_BWT.shape[2]
        score_BW = log_BW.double() / length**self.penalty
        score_B, beam_B = score_BW.max(-1)
        better_B = score_B > self.score_B
        padded_BT = torch.zeros_like(self.ids_BT)
        padded_BT[:, :length] = ids_BWT[torch.arange(beam_B.shape[0], device=beam_B.device), beam_B]
        self.ids_BT = torch.where(better_B.unsqueeze(1), padded_BT, self.ids_BT)
        self.length_B = self.length_B.masked_fill(better_B, length)
        self.score_B = torch.where(better_B, score_B, self.score_B)

    def settled(self, log_BW: Tensor, length: int) -> bool:
        """Whether none of the continuations of this length, which go on, can still become better."""
        most = self.max_tokens if self.penalty > 0.0 else length + 1
        bound_B = log_BW.amax(-1).double() / most**self.penalty
        return all(host_read("beams", self.score_B >= bound_B))

    def result(self) -> Tensor:
        """The best continuations [B, length of the longest]."""
        return self.ids_BT[:, : max(host_read("beams", self.length_B))]


def beam_search(decoding: Decoding, start: int, max_tokens: int, beams: int, penalty: float) -> Tensor:
    """Continuations [B, up to max_tokens] (int64), EOS included, 0 after it.

    Of all continuations by one token the 2 W likeliest are looked at: those of the first W that end are
    candidates, the first W that do not are followed. What `max_tokens` cuts off is a candidate too. The candidate
    of greatest log probability / length^penalty wins (length counts EOS); the search stops when none can beat it.
    """
    rows, device = decoding.rows, decoding.device
    decoding = decoding.repeated(beams)
    best = _Best(rows, max_tokens, penalty, device)
    ids_BWT = torch.full((rows, beams, 1), start, device=device)
    logits_BWV = decoding.next_logits(ids_BWT.flatten(0, 1)).view(rows, beams, -1)
    log_BW = torch.zeros(rows, beams, dtype=widen(logits_BWV).dtype, device=device)
    log_BW[:, 1:] = float("-inf")  # all beams are alike before the first token
    for length in range(1, max_tokens + 1):
        total_BWV = log_BW.unsqueeze(-1) + torch.log_softmax(widen(logits_BWV), -1)
        log_BC, ids_BCT, beam_BC = _likeliest(total_BWV, ids_BWT, 2 * beams)
        ends_BC = ids_BCT[:, :, -1] == EOS
        best.offer(ids_BCT[:, :beams, 1:], log_BC[:, :beams].masked_fill(~ends_BC[:, :beams], float("-inf")))
        chosen_BW = torch.argsort(ends_BC.to(torch.int64), dim=1, stable=True)[:, :beams]
        log_BW = log_BC.masked_fill(ends_BC, float("-inf")).gather(1, chosen_BW)
        ids_BWT = ids_BCT.gather(1, chosen_BW.unsqueeze(-1).expand(-1, -1, length + 1))
        if length == max_tokens:
            best.offer(ids_BWT[:, :, 1:], log_BW)
        elif best.settled(log_BW, length):
            break
        else:
            offset_B1 = torch.arange(rows, device=device).unsqueeze(1) * beams
            decoding.select((beam_BC.gather(1, chosen_BW) + offset_B1).flatten())
            logits_BWV = decoding.next_logits(ids_BWT.flatten(0, 1)).view(rows, beams, -1)
    return best.result()


def _likeliest(total_BWV: Tensor, ids_BWT: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of all continuations by one token the `count` likeliest: log probabilities, ids, and the beams they are of."""
    vocabulary = total_BWV.shape[-1]
    log_BC, place_BC = total_BWV.flatten(1).topk(min(count, total_BWV.shape[1] * vocabulary), dim=-1)
    beam_BC = place_BC // vocabulary
    before_BCT = ids_BWT.gather(1, beam_BC.unsqueeze(-1).expand(-1, -1, ids_BWT.shape[2]))
    return log_BC, torch.cat([before_BCT, (place_BC % vocabulary).unsqueeze(-1)], -1), beam_BC
