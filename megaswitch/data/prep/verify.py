"""Checks a corpus in full: what opening cannot afford. Shape suffixes: Q sequences, T tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.prep.command import Parser, progress, run
from megaswitch.data.sidecar import file_digest
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.utils.errors import DataError

_ENTRIES_AT_ONCE = 1 << 22
_SHOWN = 8


def problems(corpus: IndexedCorpus, vocab_size: int | None) -> Iterator[str]:
    """Everything wrong with an opened corpus, one sentence each; ids are compared with `vocab_size` where it is
    known."""
    yield from _bad_sequences(corpus)
    yield from _bad_borders(corpus)
    with progress("ids", corpus.num_tokens) as advance:
        yield from _bad_ids(corpus, vocab_size, advance)
    size = corpus.bin.stat().st_size + corpus.idx.stat().st_size
    with progress("checksums", size) as advance:
        yield from _bad_checksums(corpus, advance)


def _bad_sequences(corpus: IndexedCorpus) -> Iterator[str]:
    """Lengths are not negative, offsets are the running sum of lengths."""
    expected = 0
    for first in range(0, corpus.num_sequences, _ENTRIES_AT_ONCE):
        lengths_Q = corpus.lengths_Q[first : first + _ENTRIES_AT_ONCE].astype(np.int64)
        if (lengths_Q < 0).any():
            yield f"{corpus.idx}: sequence {first + int(np.argmax(lengths_Q < 0))} has a negative length"
        ends_Q = expected + np.cumsum(lengths_Q) * corpus.dtype.itemsize
        wrong_Q = corpus.offsets_Q[first : first + _ENTRIES_AT_ONCE] != np.concatenate([[expected], ends_Q[:-1]])
        if wrong_Q.any():
            number = first + int(np.argmax(wrong_Q))
            yield f"{corpus.idx}: the offset of sequence {number} is not the sum of the lengths before it"
            return
        expected = int(ends_Q[-1])


def _bad_borders(corpus: IndexedCorpus) -> Iterator[str]:
    for first in range(0, corpus.num_documents, _ENTRIES_AT_ONCE):
        falling = np.diff(corpus.borders[first : first + _ENTRIES_AT_ONCE + 1]) < 0
        if falling.any():
            yield f"{corpus.idx}: document {first + int(np.argmax(falling))} ends before it begins"
            return


def _bad_ids(corpus: IndexedCorpus, vocab_size: int | None, advance: Callable[[int], None]) -> Iterator[str]:
    limit = np.iinfo(np.int64).max if vocab_size is None else vocab_size
    for first in range(0, corpus.num_tokens, _ENTRIES_AT_ONCE):
        ids_T = corpus.tokens_T[first : first + _ENTRIES_AT_ONCE]
        if int(ids_T.max()) >= limit or int(ids_T.min()) < 0:
            outside_T = (ids_T < 0) | (ids_T.astype(np.int64) >= limit)
            place = first + int(np.argmax(outside_T))
            where = f"document {_document_of(corpus, place)}, token {place} of the file"
            yield f"{corpus.bin}: the id {corpus.tokens_T[place]} ({where}) is outside the vocabulary of {vocab_size}"
            return
        advance(ids_T.size)


def _document_of(corpus: IndexedCorpus, token: int) -> int:
    sequence = int(np.searchsorted(corpus.offsets_Q, token * corpus.dtype.itemsize, side="right")) - 1
    return int(np.searchsorted(corpus.borders, sequence, side="right")) - 1


def _bad_checksums(corpus: IndexedCorpus, advance: Callable[[int], None]) -> Iterator[str]:
    if corpus.sidecar is None:
        return
    for ending, path in (("bin", corpus.bin), ("idx", corpus.idx)):
        stated = corpus.sidecar.checksums.get(ending)
        digest = file_digest(path, advance)
        if stated is None or digest.whole() == stated:
            continue
        blocks = zip(corpus.sidecar.blocks if ending == "bin" else [], digest.blocks(), strict=False)
        wrong = [str(number) for number, (said, found) in enumerate(blocks) if said != found]
        where = f", in its blocks of 64 MiB number {', '.join(wrong[:_SHOWN])}" if wrong else ""
        yield f"{path}: its bytes are not those that were written (checksum){where}"


def verify(prefix: str, tokenizer: Tokenizer | None = None) -> str:
    """A line that says what was checked; DataError with all problems where there are any."""
    corpus = IndexedCorpus(prefix)
    facts = corpus.sidecar.tokenizer if corpus.sidecar else None
    found = []
    if tokenizer is not None and facts is not None and tokenizer.facts != facts:
        found.append(f"{tokenizer.path} is not the tokenizer that {prefix} was prepared with (fingerprints differ)")
    known = tokenizer.facts if tokenizer else facts
    found += problems(corpus, known.vocab_size if known else None)
    if found:
        raise DataError(f"{prefix} is not sound; prepare it again\n  " + "\n  ".join(found))
    vocabulary = f"ids below {known.vocab_size}" if known else "ids not compared: no vocabulary known"
    checksums = "checksums" if corpus.sidecar else "no checksums: no .json"
    counts = f"{corpus.num_sequences} sequences, {corpus.num_documents} documents, {corpus.num_tokens} tokens"
    return f"{prefix} is sound: {counts}; {vocabulary}; {checksums}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `data_prep/verify.py`; returns its exit code."""
    parser = Parser(
        "Check every byte of a corpus: offsets, documents, ids below the vocabulary, checksums.",
        "python data_prep/verify.py data/docs",
    )
    parser.add_argument("prefix", metavar="PREFIX", help="path without ending")
    parser.add_argument(
        "--tokenizer", metavar="M.model", help="whose vocabulary the ids must fit (default: the corpus's)"
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        tokenizer = Tokenizer(options.tokenizer) if options.tokenizer else None
        sys.stdout.write(verify(options.prefix, tokenizer) + "\n")

    return run(work)
