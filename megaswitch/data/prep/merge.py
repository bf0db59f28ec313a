"""Joins corpora made with one tokenizer into one, documents in the order given."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.prep.command import Parser, progress, run, say
from megaswitch.data.sidecar import Sidecar
from megaswitch.data.writer import IndexedWriter
from megaswitch.utils.errors import DataError, UserError

_SEQUENCES_AT_ONCE = 1 << 16


def merge(prefixes: Sequence[str], output: str) -> Sidecar:
    """Writes the corpus `output`; DataError where dtypes or tokenizers differ, UserError where output is an
    input."""
    if output in prefixes:
        raise UserError(f"--output {output} is one of the inputs; choose another prefix")
    corpora = [IndexedCorpus(prefix) for prefix in prefixes]
    first = corpora[0]
    known = [corpus.sidecar.tokenizer if corpus.sidecar else None for corpus in corpora]
    for corpus, facts in zip(corpora, known, strict=True):
        if corpus.dtype != first.dtype or facts != known[0]:
            raise DataError(
                f"{corpus.prefix} was prepared with another tokenizer or dtype than {first.prefix}; prepare both with "
                f"one"
            )
    sources = [source for corpus in corpora if corpus.sidecar for source in corpus.sidecar.sources]
    with (
        IndexedWriter(output, first.dtype) as writer,
        progress("merging", sum(c.num_tokens for c in corpora)) as advance,
    ):
        for corpus in corpora:
            corpus.document_extents()  # refuses an index whose documents do not follow one another
            for part in _document_ranges(corpus):
                advance(_copy(corpus, writer, part))
        return writer.finish(known[0], sources, {"merged": [corpus.idx.stem for corpus in corpora]})


def _document_ranges(corpus: IndexedCorpus) -> list[range]:
    """Runs of documents of about `_SEQUENCES_AT_ONCE` sequences, so that memory stays bounded."""
    marks = np.arange(0, corpus.num_sequences, _SEQUENCES_AT_ONCE)
    cuts = np.unique(np.append(np.searchsorted(corpus.borders[:-1], marks, side="left"), corpus.num_documents))
    return [range(a, b) for a, b in pairwise(cuts.tolist())]


def _copy(corpus: IndexedCorpus, writer: IndexedWriter, documents: range) -> int:
    borders = np.array(corpus.borders[documents.start : documents.stop + 1])
    lengths_Q = corpus.lengths_Q[borders[0] : borders[-1]]
    first = int(corpus.offsets_Q[borders[0]]) // corpus.dtype.itemsize if lengths_Q.size else 0
    ids_T = corpus.tokens_T[first : first + int(lengths_Q.sum(dtype=np.int64))]
    if ids_T.size != int(lengths_Q.sum(dtype=np.int64)):
        raise DataError(f"{corpus.idx}: its lengths reach beyond {corpus.bin}; check it with data_prep/verify.py")
    writer.add_documents(ids_T, lengths_Q, np.diff(borders))
    return int(ids_T.size)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `data_prep/merge.py`; returns its exit code."""
    parser = Parser(
        "Join corpora made with one tokenizer into one.",
        "python data_prep/merge.py data/part0 data/part1 --output data/all",
    )
    parser.add_argument("prefixes", nargs="+", metavar="PREFIX", help="corpora, in order")
    parser.add_argument("--output", required=True, metavar="PREFIX")
    options = parser.parse_args(arguments)

    def work() -> None:
        sidecar = merge(options.prefixes, options.output)
        say(f"{options.output}: {sidecar.documents} documents, {sidecar.tokens} tokens")

    return run(work)
