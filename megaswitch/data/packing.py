"""Rows of several short samples: which pieces of documents share a row is decided once; rows come in another order
each epoch.

Shape suffixes: N documents, P pieces of documents, L lengths from 1 up, M rows to fill, R rows of an epoch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megaswitch.data.batch import write_row
from megaswitch.data.denoise import Kind, Rule, table
from megaswitch.data.index import IndexStore, pack
from megaswitch.data.objectives import span_corruption, span_sizes
from megaswitch.data.parts import Filler
from megaswitch.data.rng import UInt64s, derive, derive_next, permutation
from megaswitch.data.spans import EOS, noise_counts
from megaswitch.data.stream import Documents, Epochs

Int64s = NDArray[np.int64]

_PIECES = 16  # a packed sample's key: derive(row's key, _PIECES + number); csrc/samples.cpp says the same
_PACK = 0x7061636B  # purpose of the key of the order in which documents are laid into rows, "pack"


def packed_rules(encoder_length: int, decoder_length: int, density: float, mean_span: float) -> list[Rule]:
    """The rules of pieces of 1, 2, 3 ... tokens, up to the longest that fits a row."""
    longest, rules = span_corruption(encoder_length, decoder_length, density, mean_span).length, []
    for length in range(1, longest + 1):
        inputs, targets = span_sizes(length, density, mean_span)
        if inputs > encoder_length or targets > decoder_length:
            break
        noise, spans = noise_counts(length, density, mean_span)
        rules.append(Rule(Kind.SPANS, length, noise, min(spans, max(length, 2) - noise)))
    return rules


def sizes(rules: list[Rule]) -> tuple[Int64s, Int64s]:
    """What pieces of 1, 2, 3 ... tokens take of both sides, EOS included, int64 of shape L."""
    hidden = [min(rule.noise, rule.length - 1) for rule in rules]
    inputs = [rule.length - h + (rule.spans if h else 0) + 1 for rule, h in zip(rules, hidden, strict=True)]
    targets = [h + rule.spans + 1 for rule, h in zip(rules, hidden, strict=True)]
    return np.array(inputs, np.int64), np.array(targets, np.int64)


def cut_documents(lengths_N: Int64s, order_N: Int64s, longest: int) -> tuple[Int64s, Int64s, Int64s]:
    """Documents in the given order, cut into pieces of the longest length: of each piece its document, the tokens
    to skip and its length, int64 of shape P. Empty documents give none."""
    counts_N = -(-lengths_N[order_N] // longest)
    place_P = np.repeat(order_N, counts_N)
    number_P = np.arange(place_P.size) - np.repeat(np.cumsum(counts_N) - counts_N, counts_N)
    skip_P = number_P * longest
    return place_P, skip_P, np.minimum(lengths_N[place_P] - skip_P, longest)


class RowOrder:
    """Rows of all epochs by number: each epoch has every row once."""

    def __init__(self, count: int, store: IndexStore, facts: tuple[object, ...], *seeds: int) -> None:
        self.count = count
        self.epochs = Epochs(np.ones(count, np.int64), store, ("rows", *facts), *seeds)

    def rows(self, within_M: Int64s) -> Int64s:
        """The row of each sample, int64 of shape M."""
        epoch_M, place_M = np.divmod(within_M, self.count)
        rows_M = np.empty_like(within_M)
        for number in np.unique(epoch_M).tolist():
            here = epoch_M == number
            rows_M[here] = self.epochs.get(number).order_N[place_M[here]]
        if int(place_M.max()) > self.count // 2:
            self.epochs.make_ahead(int(epoch_M.max()) + 1)
        return rows_M


class PackedPart:
    """A corpus in rows of several pieces of documents, each corrupted by itself."""

    def __init__(
        self,
        documents: Documents,
        rules: list[Rule],
        room: tuple[int, int],
        store: IndexStore,
        facts: tuple[object, ...],
        *seeds: int,
    ) -> None:
        """`rules` by length, from 1; `room` are a row's two lengths; `facts` and `seeds` as for `Epochs`."""
        self.documents, self.rules, self._table = documents, rules, table(rules)
        inputs_L, targets_L = sizes(rules)

        def build() -> list[Int64s]:
            order_N = permutation(documents.lengths_N.size, derive(*seeds, _PACK))
            pieces = cut_documents(documents.lengths_N, order_N, len(rules))
            at_P = pieces[2] - 1
            order_P, borders_R = pack(inputs_L[at_P], targets_L[at_P], *room)
            return [*(array[order_P] for array in pieces), borders_R]

        facts = (*facts, room, [rule.numbers() for rule in rules])
        self._store, self._facts, self._build = store, ("packing", *facts, *seeds), build
        arrays = store.arrays(self._facts, build, documents.lengths_N.size)
        self.place_P, self.skip_P, self.length_P, self.borders_R = arrays
        self.order = RowOrder(self.borders_R.size - 1, store, facts, *seeds)
        self.num_samples: int = self.order.count

    def fill(self, filler: Filler, rows_M: Int64s, within_M: Int64s, keys_M: UInt64s) -> None:
        """See `Part`."""
        own_M = self.order.rows(within_M)
        first_M, last_M = self.borders_R[own_M], self.borders_R[own_M + 1]
        if filler.rows is None:
            for row, first, last, key in zip(rows_M, first_M, last_M, keys_M.tolist(), strict=True):
                keys = (derive_next(key, _PIECES + number) for number in range(int(last - first)))
                write_row(filler.batch, row, [self._sample(filler, int(first) + i, k) for i, k in enumerate(keys)])
            return
        documents = self.documents
        filler.documents |= dict.fromkeys(rows_M.tolist(), documents)
        filler.rows.add_packed(
            *(rows_M, documents.tokens, documents.starts_N, filler.special.vocab_size),
            *(self.place_P, self.skip_P, self.length_P, first_M, last_M, keys_M),
            *(self._table, filler.special.first_sentinel, EOS),
        )

    def prepare(self, epochs: int) -> None:
        """See `Part`."""
        self._store.arrays(self._facts, self._build, self.documents.lengths_N.size, keep=True)
        self.order.epochs.keep(epochs)

    def _sample(self, filler: Filler, piece: int, key: int) -> tuple[Int64s, Int64s]:
        first = int(self.documents.starts_N[self.place_P[piece]] + self.skip_P[piece])
        length = int(self.length_P[piece])
        ids = self.documents.tokens[first : first + length].astype(np.int64)
        return filler.sample(self.rules[length - 1], filler.check(self.documents, ids), key)
