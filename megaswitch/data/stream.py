"""The sample index of one corpus: epochs of shuffled documents, joined into one endless stream of tokens and cut into
pieces.

Every epoch holds the same tokens, so the epoch of a stream position is a division and only the order of documents
inside an epoch needs memory: 16 bytes a document for each of the two epochs kept. A piece may run over the end of an
epoch into the next.

Shape suffixes: N documents, L raw tokens of a piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from megaswitch.data.native import native
from megaswitch.data.rng import derive, permutation
from megaswitch.utils.errors import DataError

Int64s = NDArray[np.int64]

_KEPT_EPOCHS = 2  # a piece at an epoch's end needs two; more would only cost memory
_ORDER = 0x6F72646572  # purpose of the keys drawn here, "order"


@dataclass(frozen=True)
class Documents:
    """The documents of one split of one corpus: number in the corpus, first token in the `.bin` and tokens, int64 of
    shape N."""

    prefix: str
    tokens: NDArray[np.integer]
    numbers_N: Int64s
    starts_N: Int64s
    lengths_N: Int64s

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents together."""
        return int(self.lengths_N.sum())


@dataclass(frozen=True)
class Epoch:
    """One epoch's documents in order, and the running sum of their tokens, int64 of shape N."""

    order_N: Int64s
    ends_N: Int64s


def gather_numpy(
    documents: Documents, epoch: Epoch, offset: int, vocab_size: int, out_L: Int64s
) -> tuple[int, int, int]:
    """The oracle and fallback of the compiled `gather`: copies tokens from `offset` on until `out_L` is full or the
    epoch ends.

    Returns (tokens copied, place in `documents` of the first document with an id outside the vocabulary or -1, that
    id).
    """
    copied, bad_place, bad_id = 0, -1, 0
    at = int(np.searchsorted(epoch.ends_N, offset, side="right"))
    while copied < out_L.size and at < epoch.order_N.size:
        place = int(epoch.order_N[at])
        length = int(documents.lengths_N[place])
        skip = offset + copied - (int(epoch.ends_N[at]) - length)
        count = min(length - skip, out_L.size - copied)
        first = int(documents.starts_N[place]) + skip
        ids = documents.tokens[first : first + count].astype(np.int64)
        out_L[copied : copied + count] = ids
        outside = np.flatnonzero((ids < 0) | (ids >= vocab_size))
        if outside.size and bad_place < 0:
            bad_place, bad_id = place, int(ids[outside[0]])
        copied += count
        at += 1
    return copied, bad_place, bad_id


class Stream:
    """The endless token stream of a split of one corpus; a function of the documents and the seed alone. Safe to share
    by threads."""

    def __init__(self, documents: Documents, vocab_size: int, *seeds: int) -> None:
        """`seeds`: run seed and the corpus's number in the blend; DataError where the documents hold no token."""
        self.documents = documents
        self.num_tokens = documents.num_tokens
        if self.num_tokens == 0:
            raise DataError(f"{documents.prefix}: the documents hold no tokens; prepare the corpus again")
        self._vocab_size = vocab_size
        self._seeds = seeds
        self._epochs: dict[int, Epoch] = {}
        self._lock = Lock()

    def epoch(self, number: int) -> Epoch:
        """The order of epoch `number`, built on first use; costs the time of one shuffle."""
        with self._lock:
            if number not in self._epochs:
                order_N = permutation(self.documents.lengths_N.size, derive(*self._seeds, _ORDER, number))
                while len(self._epochs) >= _KEPT_EPOCHS:
                    del self._epochs[min(self._epochs, key=lambda kept: (abs(kept - number) <= 1, kept))]
                self._epochs[number] = Epoch(order_N, np.cumsum(self.documents.lengths_N[order_N]))
            return self._epochs[number]

    def read(self, position: int, out_L: Int64s) -> None:
        """Fills `out_L` (int64, contiguous) with the stream's tokens from `position` on; DataError for an id outside
        the vocabulary."""
        filled = 0
        while filled < out_L.size:
            number, offset = divmod(position + filled, self.num_tokens)
            copied = self._gather(self.epoch(number), offset, out_L[filled:])
            assert copied > 0, "an epoch ends only where the next begins"
            filled += copied

    def _gather(self, epoch: Epoch, offset: int, out_L: Int64s) -> int:
        documents = self.documents
        compiled = native()
        if compiled is None:
            copied, bad_place, bad_id = gather_numpy(documents, epoch, offset, self._vocab_size, out_L)
        else:
            copied, bad_place, bad_id = compiled.gather(
                documents.tokens, documents.starts_N, epoch.order_N, epoch.ends_N, offset, self._vocab_size, out_L
            )
        if bad_place >= 0:
            raise DataError(
                f"{documents.prefix}.bin: document {documents.numbers_N[bad_place]} holds the id {bad_id}, but the "
                f"model's vocabulary "
                f"has {self._vocab_size}: prepare the corpus with this model's tokenizer, or check the file with "
                f"data_prep/verify.py"
            )
        return int(copied)
