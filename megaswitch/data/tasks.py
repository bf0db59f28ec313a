"""Text-to-text tasks: pairs of inputs and targets, from a `.tsv` or `.jsonl` file tokenised on the fly, or prepared as
a corpus whose documents are two sequences each.

Shape suffixes: M rows to fill, P pairs, R rows of an epoch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from megaswitch.data.batch import write_row
from megaswitch.data.denoise import cut
from megaswitch.data.index import IndexStore, pack
from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.packing import RowOrder
from megaswitch.data.parts import Filler
from megaswitch.data.rng import UInt64s
from megaswitch.data.spans import EOS
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.utils.errors import DataError, MissingInputError

Int64s = NDArray[np.int64]

PREFIX = "task:"
_ENDINGS = (".tsv", ".jsonl")


class Pairs(Protocol):
    """Inputs and targets by number, without EOS."""

    def __len__(self) -> int: ...

    def pair(self, number: int) -> tuple[Int64s, Int64s]:
        """Ids of both sides."""
        ...

    def lengths(self) -> tuple[Int64s, Int64s]:
        """Ids on both sides of every pair, int64 of shape P."""
        ...


def is_raw(path: str) -> bool:
    """Whether a task is a file of text."""
    return path.endswith(_ENDINGS)


class RawPairs:
    """Lines of a `.tsv` (inputs, a tab, targets) or a `.jsonl` (`{"inputs": ..., "targets": ...}`) file, tokenised
    when asked for."""

    def __init__(self, path: str, tokenizer: Tokenizer) -> None:
        """Reads every line; DataError names the first that is no pair."""
        self.path, self._tokenizer = path, tokenizer
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise MissingInputError(f"the task {path} cannot be read: {error.strerror}") from None
        self.fingerprint: str = xxhash.xxh3_128_hexdigest(content)
        self._lines = content.split(b"\n")
        self._numbers = [i for i, line in enumerate(self._lines) if line.strip()]
        for number in range(len(self)):
            self.texts(number)

    def __len__(self) -> int:
        return len(self._numbers)

    def texts(self, number: int) -> tuple[str, str]:
        """Both sides as text."""
        line = self._lines[self._numbers[number]]
        where = f"{self.path}:{self._numbers[number] + 1}"
        try:
            if self.path.endswith(".jsonl"):
                content = orjson.loads(line)
                pair = [content["inputs"], content["targets"]]
            else:
                pair = line.decode().rstrip("\r").split("\t")
        except (ValueError, KeyError, TypeError):
            pair = []
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            json = self.path.endswith(".jsonl")
            wanted = '{"inputs": "...", "targets": "..."}' if json else "inputs, a tab and targets"
            raise DataError(f"{where} is no pair in UTF-8: write {wanted} on each line")
        return pair[0], pair[1]

    def pair(self, number: int) -> tuple[Int64s, Int64s]:
        """See `Pairs`."""
        inputs, targets = self._tokenizer.encode_batch(self.texts(number))
        return np.array(inputs, np.int64), np.array(targets, np.int64)

    def lengths(self) -> tuple[Int64s, Int64s]:
        """See `Pairs`."""
        raise DataError(
            f"{self.path} is text, and how much of a row a pair takes is known only of prepared tasks: prepare it with "
            f"data_prep/prepare_task.py, or set data.packing=false"
        )


class PreparedPairs:
    """A corpus in which every document is two sequences: inputs and targets."""

    def __init__(self, corpus: IndexedCorpus) -> None:
        """DataError where a document has another number of sequences."""
        self.corpus = corpus
        counts = np.diff(corpus.borders)
        if (counts != 2).any():
            number = int(np.flatnonzero(counts != 2)[0])
            raise DataError(
                f"{corpus.prefix} is no task: its document {number} has {counts[number]} sequences, not inputs and "
                f"targets; prepare the task with data_prep/prepare_task.py"
            )

    def __len__(self) -> int:
        return self.corpus.num_documents

    def pair(self, number: int) -> tuple[Int64s, Int64s]:
        """See `Pairs`."""
        ids = self.corpus.document(number).astype(np.int64)
        border = int(self.corpus.lengths_Q[2 * number])
        return ids[:border], ids[border:]

    def lengths(self) -> tuple[Int64s, Int64s]:
        """See `Pairs`."""
        lengths_Q = self.corpus.lengths_Q.astype(np.int64)
        return lengths_Q[0::2], lengths_Q[1::2]


class TaskPart:
    """The pairs of one split of a task, in another order each epoch; with packing, rows of several."""

    def __init__(
        self,
        name: str,
        pairs: Pairs,
        numbers_P: Int64s,
        room: tuple[int, int],
        packing: bool,
        store: IndexStore,
        facts: tuple[object, ...],
        *seeds: int,
    ) -> None:
        """`numbers_P` are the split's pairs; what is longer than `room` (positions of both sides) is cut."""
        self.name, self._pairs, self._room = name, pairs, room
        self._order_P, self._borders_R = numbers_P, np.arange(numbers_P.size + 1)
        if packing:
            both = zip(pairs.lengths(), room, strict=True)
            sizes = [np.minimum(lengths_P[numbers_P] + 1, most) for lengths_P, most in both]
            order_P, self._borders_R = pack(sizes[0], sizes[1], *room)
            self._order_P = numbers_P[order_P]
        self.order = RowOrder(self._borders_R.size - 1, store, (*facts, packing, room), *seeds)
        self.num_samples: int = self.order.count

    def fill(self, filler: Filler, rows_M: Int64s, within_M: Int64s, keys_M: UInt64s) -> None:
        """See `Part`."""
        for row, own in zip(rows_M.tolist(), self.order.rows(within_M).tolist(), strict=True):
            numbers = self._order_P[self._borders_R[own] : self._borders_R[own + 1]]
            write_row(filler.batch, row, [self._sample(filler, number) for number in numbers.tolist()])

    def prepare(self, epochs: int) -> None:
        """See `Part`."""
        self.order.epochs.keep(epochs)

    def _sample(self, filler: Filler, number: int) -> tuple[Int64s, Int64s]:
        sides: list[Any] = []
        for ids, room in zip(self._pairs.pair(number), self._room, strict=True):
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < filler.special.vocab_size:
                vocabulary = filler.special.vocab_size
                raise DataError(f"{self.name}: pair {number} has an id outside the model's vocabulary of {vocabulary}")
            sides.append(cut(np.append(ids, EOS), room))
        return sides[0], sides[1]
