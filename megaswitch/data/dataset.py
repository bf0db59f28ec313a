"""One split of a blend of corpora and tasks as numbered samples: a batch is a function of (seed, global sample index)
and of nothing else.

Shape suffixes: B rows, K corpora, M rows of one corpus.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from megaswitch.data.batch import Batch, Empty, empty, empty_batch
from megaswitch.data.blend import Blend, integer_weights
from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.parts import Filler, Part, Special
from megaswitch.data.rng import derive, derive_each
from megaswitch.utils.errors import UserError

_MASKS = 0x6D61736B73  # purpose of a sample's key, "masks"
_MOST_THREADS = 4


@dataclass(frozen=True)
class Member:
    """One corpus or task of a dataset: where it came from, its weight, its samples, its files where it is mapped."""

    source: str
    weight: Fraction
    part: Part
    corpus: IndexedCorpus | None


@dataclass(frozen=True)
class Shape:
    """What rows look like: positions of both sides, special ids, and whether a row may hold several samples."""

    lengths: tuple[int, int]
    special: Special
    packed: bool


class Dataset:
    """The samples of one split. Made by `opening.open_split`; safe to share by threads."""

    def __init__(
        self, members: list[Member], shape: Shape, *, seed: int, repeat: bool, fingerprint: str, threads: int = 0
    ) -> None:
        self.members, self.shape, self.repeat = members, shape, repeat
        self.fingerprint = fingerprint
        """Hash of what the data is: tokenizer, counts, checksums where known, split, weights and lengths. Paths and
        seed are not in it."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._threads = threads or min(_MOST_THREADS, cores)
        self._masks_key = derive(seed, _MASKS)
        sizes = [member.part.num_samples for member in members]
        weights = integer_weights([member.weight for member in members]) if repeat else sizes
        self._blend = Blend(weights)
        self._shares = [Fraction(weight, sum(weights)) for weight in weights]
        self.num_samples: int = max(-(-size // share) for size, share in zip(sizes, self._shares, strict=True))
        """Samples after which every token of every corpus has been seen: one epoch of the largest corpus for its
        weight."""

    @property
    def first_sentinel(self) -> int:
        """The id of `<extra_id_0>`; the others count down from it."""
        return self.shape.special.first_sentinel

    def epochs(self, samples: int) -> list[float]:
        """How often each corpus has been passed over after so many samples of the blend."""
        pairs = zip(self.members, self._shares, strict=True)
        return [float(samples * share / member.part.num_samples) for member, share in pairs]

    def batch(self, first: int, count: int, make: Empty = empty) -> Batch:
        """Samples first .. first + count - 1, in arrays that `make` gives. Without `repeat` those from `num_samples`
        on are rows of zeros.

        DataError where a document holds an id outside the vocabulary, or a file shrank since it was opened.
        """
        if first < 0 or count < 0:
            raise UserError(f"samples {first} to {first + count} were asked for; they are numbered from 0")
        batch = empty_batch(first, count, self.shape.lengths, packed=self.shape.packed, make=make)
        real = count if self.repeat else min(max(self.num_samples - first, 0), count)
        for array in batch:
            if array is not None and array.ndim == 2:
                array[real:] = 0
        if real:
            self._fill(Filler(batch, self.shape.special), first, real)
        return batch

    def _fill(self, filler: Filler, first: int, count: int) -> None:
        corpus_B, within_B = self._blend.locate(first, count)
        keys_B = derive_each(self._masks_key, filler.batch.samples_B[:count].astype(np.uint64))
        by_corpus_B = np.argsort(corpus_B, kind="stable")
        borders = np.searchsorted(corpus_B[by_corpus_B], np.arange(len(self.members) + 1))
        for member, begin, end in zip(self.members, borders[:-1].tolist(), borders[1:].tolist(), strict=True):
            if begin < end:
                rows_M = by_corpus_B[begin:end]
                if member.corpus is not None:
                    member.corpus.check_unchanged()
                member.part.fill(filler, rows_M, within_B[rows_M], keys_B[rows_M])
        filler.finish(self._threads)

    def prepare(self, epochs: int) -> None:
        """Keeps the indexes of the first `epochs` epochs of every corpus on disk."""
        for member in self.members:
            member.part.prepare(epochs)


def fingerprint_facts(members: Sequence[Member]) -> list[dict[str, Any]]:
    """What a fingerprint holds of the corpora."""
    facts = []
    for member in members:
        entry: dict[str, Any] = {"weight": str(member.weight), "samples": member.part.num_samples}
        corpus = member.corpus
        if corpus is not None:
            entry["dtype"] = corpus.dtype.name
            entry["counts"] = [corpus.num_sequences, corpus.num_documents, corpus.num_tokens]
            entry["checksums"] = corpus.sidecar.checksums if corpus.sidecar else None
        facts.append(entry)
    return facts
