"""The endless token stream of a corpus: epochs of shuffled documents, end to end, cut into pieces.

Every epoch holds the same tokens, so the epoch of a stream position is a division and only the order of documents
inside an epoch needs an index: 16 bytes a document for each of the epochs kept. A piece may run over the end of an
epoch into the next.

Shape suffixes: N documents, L raw tokens of a piece.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from megaswitch.data.index import IndexStore, epoch_order
from megaswitch.data.rng import derive
from megaswitch.utils.errors import DataError

Int64s = NDArray[np.int64]

_KEPT_EPOCHS = 3  # a piece at an epoch's end needs two, and the next may be in the making
_AHEAD_FROM = 1 << 18  # documents from which on the next epoch is made before it is needed
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


class Epochs:
    """The orders of a set of things with lengths, epoch by epoch; a function of the lengths and the seeds alone.
    Safe to share by threads."""

    def __init__(self, lengths_N: Int64s, store: IndexStore, facts: tuple[object, ...], *seeds: int) -> None:
        """`facts` names the lengths in the store; `seeds` are the run's and the corpus's number in the blend."""
        self._lengths_N, self._store = np.ascontiguousarray(lengths_N), store
        self._facts, self._seeds = facts, seeds
        self._made: dict[int, Future[Epoch]] = {}
        self._worker: ThreadPoolExecutor | None = None
        self._lock = Lock()

    def get(self, number: int) -> Epoch:
        """One epoch; made where it is not there, and waited for where another thread makes it."""
        with self._lock:
            future = self._made.get(number)
            mine = future is None
            if future is None:
                future = self._made[number] = Future()
                self._forget(number)
        if mine:
            self._fill(future, number)
        return future.result()

    def make_ahead(self, number: int) -> None:
        """Begins to make an epoch on a thread of its own, where that takes long enough to be worth it."""
        with self._lock:
            if self._lengths_N.size < _AHEAD_FROM or number in self._made:
                return
            future: Future[Epoch] = Future()
            self._made[number] = future
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, "epoch")
            self._worker.submit(self._fill, future, number)

    def keep(self, count: int) -> None:
        """Makes the first `count` epochs and keeps them on disk, whatever their size."""
        for number in range(count):
            self._make(number, keep=True)

    def _fill(self, future: Future[Epoch], number: int) -> None:
        try:
            future.set_result(self._make(number))
        except BaseException as error:  # whatever it is, it belongs to those who wait
            future.set_exception(error)

    def _make(self, number: int, *, keep: bool = False) -> Epoch:
        key = derive(*self._seeds, _ORDER, number)
        facts = ("epoch", *self._facts, *self._seeds, number)
        size = self._lengths_N.size
        return Epoch(*self._store.arrays(facts, lambda: epoch_order(self._lengths_N, key), size, keep=keep))

    def _forget(self, number: int) -> None:
        """Drops the epoch that is furthest from the one asked for."""
        while len(self._made) > _KEPT_EPOCHS:
            del self._made[max(self._made, key=lambda kept: abs(kept - number))]


class Stream:
    """The token stream of a split of one corpus. Safe to share by threads."""

    def __init__(self, documents: Documents, epochs: Epochs) -> None:
        """DataError where the documents hold no token."""
        self.documents, self.epochs = documents, epochs
        self.num_tokens = documents.num_tokens
        if self.num_tokens == 0:
            raise DataError(f"{documents.prefix}: the documents hold no tokens; prepare the corpus again")

    def read(self, position: int, length: int) -> Int64s:
        """The stream's tokens from `position` on, int64 of shape L: the oracle and fallback of the compiled reader."""
        pieces: list[Int64s] = []
        missing = length
        while missing:
            number, offset = divmod(position + length - missing, self.num_tokens)
            pieces += self._read_epoch(self.epochs.get(number), offset, missing)
            missing = length - sum(piece.size for piece in pieces)
        return np.concatenate(pieces)

    def _read_epoch(self, epoch: Epoch, offset: int, room: int) -> list[Int64s]:
        documents, pieces = self.documents, []
        at = int(np.searchsorted(epoch.ends_N, offset, side="right"))
        while room and at < epoch.order_N.size:
            place = int(epoch.order_N[at])
            skip = offset - (int(epoch.ends_N[at]) - int(documents.lengths_N[place]))
            first = int(documents.starts_N[place]) + skip
            count = min(int(documents.lengths_N[place]) - skip, room)
            pieces.append(documents.tokens[first : first + count].astype(np.int64))
            room, offset, at = room - count, offset + count, at + 1
        return pieces
