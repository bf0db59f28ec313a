"""One corpus of a dataset as samples by number; here the pieces of its endless stream.

A part fills rows of a batch; which rows, with which of its samples, the dataset says. `Filler` is the batch in the
making: rows are given to the compiled reader, which makes all of them at once, or without it are made here and now.

Shape suffixes: M rows to fill, N documents.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megaswitch.data.batch import Batch, write_row
from megaswitch.data.denoise import Rule, cut, denoise_numpy, table
from megaswitch.data.native import native
from megaswitch.data.rng import UInt64s
from megaswitch.data.spans import EOS
from megaswitch.data.stream import Documents, Stream
from megaswitch.utils.errors import DataError

Int64s = NDArray[np.int64]

@dataclass(frozen=True)
class Special:
    """Ids that stand for something: the first sentinel, and how many ids there are."""

    first_sentinel: int
    vocab_size: int


class Part(Protocol):
    """One corpus, or one task, as samples."""

    num_samples: int
    """Samples of one epoch."""

    def fill(self, filler: Filler, rows_M: Int64s, within_M: Int64s, keys_M: UInt64s) -> None:
        """Fills rows with the samples `within_M` (numbers that go on from epoch to epoch) under their keys."""
        ...

    def prepare(self, epochs: int) -> None:
        """Keeps the indexes of so many epochs on disk."""
        ...


@dataclass
class Filler:
    """A batch in the making."""

    batch: Batch
    special: Special
    rows: Any = field(init=False)
    """The compiled reader, or None."""
    documents: dict[int, Documents] = field(default_factory=dict)
    """Whose documents each row came from."""

    def __post_init__(self) -> None:
        compiled, batch = native(), self.batch
        self.rows = None
        if compiled is not None:
            segments = (batch.encoder_segments_BS, batch.decoder_segments_BT)
            self.rows = compiled.Rows(batch.encoder_ids_BS, batch.targets_BT, batch.decoder_ids_BT, *segments)

    def finish(self, threads: int) -> None:
        """Makes what was left to the compiled reader; DataError where a document holds an id outside the vocabulary or
        its file shrank."""
        if self.rows is None:
            return
        try:
            bad = self.rows.make(threads)
        except (IndexError, RuntimeError) as error:
            names = ", ".join(sorted({documents.prefix for documents in self.documents.values()}))
            remedy = "restore the file or prepare the corpus again, and start again"
            raise DataError(f"{error} ({names}): {remedy}") from None
        if bad is not None:
            row, place, number = bad
            raise self.bad_id(self.documents[row], place, number)

    def bad_id(self, documents: Documents, place: int, number: int) -> DataError:
        """The error that names the document at `place` and its id."""
        return DataError(
            f"{documents.prefix}.bin: document {documents.numbers_N[place]} holds the id {number}, but the "
            f"model's vocabulary has {self.special.vocab_size}: prepare the corpus with this model's tokenizer, or "
            f"check the file with data_prep/verify.py"
        )

    def check(self, documents: Documents, ids: Int64s) -> Int64s:
        """The ids, where all are in the vocabulary."""
        outside = np.flatnonzero((ids < 0) | (ids >= self.special.vocab_size))
        if outside.size:
            number = int(ids[outside[0]])
            raise self.bad_id(documents, find_document(documents, number), number)
        return ids

    def sample(self, rule: Rule, ids: Int64s, key: int) -> tuple[Int64s, Int64s]:
        """Inputs and targets of a piece, cut to what a row has room for."""
        inputs, targets = denoise_numpy(rule, ids, key, self.special.first_sentinel)
        return cut(inputs, self.batch.encoder_ids_BS.shape[1]), cut(targets, self.batch.targets_BT.shape[1])


def find_document(documents: Documents, number: int) -> int:
    """The place of the first document that holds an id."""
    for place, (first, length) in enumerate(zip(documents.starts_N, documents.lengths_N, strict=True)):
        if (documents.tokens[first : first + length] == number).any():
            return place
    raise AssertionError("the id was in one of them")


class StreamPart:
    """The pieces of a corpus's stream, treated by the rules in turn."""

    def __init__(self, stream: Stream, rules: list[Rule]) -> None:
        self.stream, self.rules = stream, rules
        self._table = table(rules)
        self._before = np.cumsum([0, *(rule.length for rule in rules)])
        cycles, rest = divmod(stream.num_tokens, int(self._before[-1]))
        self.num_samples: int = cycles * len(rules) + int(np.searchsorted(self._before, rest))
        """Pieces that hold all tokens of an epoch; the last runs on into the next epoch."""

    def position(self, within_M: Int64s) -> Int64s:
        """Where in the stream samples begin."""
        cycles, place = np.divmod(within_M, len(self.rules))
        begins: Int64s = cycles * self._before[-1] + self._before[place]
        return begins

    def fill(self, filler: Filler, rows_M: Int64s, within_M: Int64s, keys_M: UInt64s) -> None:
        """See `Part`."""
        begins_M, rule_M = self.position(within_M), within_M % len(self.rules)
        if filler.rows is None:
            for row, begin, rule, key in zip(rows_M, begins_M.tolist(), rule_M.tolist(), keys_M.tolist(), strict=True):
                chosen = self.rules[rule]
                ids = filler.check(self.stream.documents, self.stream.read(begin, chosen.length))
                write_row(filler.batch, row, [filler.sample(chosen, ids, key)])
            return
        documents, total = self.stream.documents, self.stream.num_tokens
        epoch_M, offset_M = np.divmod(begins_M, total)
        ends_M = begins_M + self._table[rule_M, 1] - 1
        first, last = int(epoch_M.min()), int(ends_M.max()) // total
        epochs = [self.stream.epochs.get(number) for number in range(first, last + 1)]
        if int(offset_M.max()) > total // 2:
            self.stream.epochs.make_ahead(last + 1)
        filler.documents |= dict.fromkeys(rows_M.tolist(), documents)
        filler.rows.add_stream(
            *(rows_M, documents.tokens, documents.starts_N, filler.special.vocab_size),
            *([(epoch.order_N, epoch.ends_N) for epoch in epochs], epoch_M - first, offset_M, keys_M),
            *(self._table, rule_M, filler.special.first_sentinel, EOS),
        )

    def prepare(self, epochs: int) -> None:
        """See `Part`."""
        self.stream.epochs.keep(epochs)
