"""Joins corpora made with one tokenizer into one, documents in the order given."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.prep.command import Parser, progress, run, say
from megaswitch.data.sidecar import BlockDigest, Sidecar
from megaswitch.data.writer import IndexedWriter
from megaswitch.utils.errors import DataError, UserError

_SEQUENCES_AT_ONCE = 1 << 16


def merge(prefixes: Sequence[str], output: str) -> Sidecar:
    """Writes the corpus `output`; DataError where dtypes or tokenizers differ, UserError where output is an
    input."""
    if output in prefixes:
        raise UserError(f"--output {output} is one of the inputs; choose another prefix")
    first = IndexedCorpus(prefixes[0])
    known, sources, names = first.sidecar.tokenizer if first.sidecar else None, [], []
    tokens = 0
    for prefix in prefixes:
        corpus = IndexedCorpus(prefix)
        if corpus.dtype != first.dtype or (corpus.sidecar.tokenizer if corpus.sidecar else None) != known:
            raise DataError(
                f"{prefix} was prepared with another tokenizer or dtype than {prefixes[0]}; prepare both with one"
            )
        sources += corpus.sidecar.sources if corpus.sidecar else []
        names.append(corpus.idx.stem)
        tokens += corpus.num_tokens
    with IndexedWriter(output, first.dtype) as writer, progress("merging", tokens) as advance:
        for prefix in prefixes:
            corpus = IndexedCorpus(prefix)
            advance(append(corpus, writer))
        return writer.finish(known, sources, {"merged": names})


def append(corpus: IndexedCorpus, writer: IndexedWriter) -> int:
    """Copies all of a corpus; returns its tokens. DataError where its index or its ids are damaged."""
    corpus.document_extents()  # refuses an index whose documents do not follow one another
    digest = BlockDigest()
    for part in document_ranges(corpus):
        copy(corpus, writer, part, digest)
    stated = corpus.sidecar.checksums.get("bin") if corpus.sidecar else None
    if stated is not None and digest.whole() != stated:
        raise DataError(f"{corpus.bin}: its bytes are not those that were written (checksum); prepare it again")
    return corpus.num_tokens


def document_ranges(corpus: IndexedCorpus, documents: range | None = None) -> list[range]:
    """Runs of documents (of all) of about `_SEQUENCES_AT_ONCE` sequences, so that memory stays bounded."""
    wanted = range(corpus.num_documents) if documents is None else documents
    first, last = int(corpus.borders[wanted.start]), int(corpus.borders[wanted.stop])
    marks = np.arange(first, last, _SEQUENCES_AT_ONCE)
    inner = wanted.start + np.searchsorted(corpus.borders[wanted.start : wanted.stop], marks, side="left")
    return [range(a, b) for a, b in pairwise(np.unique([wanted.start, *inner, wanted.stop]).tolist())]


def copy(corpus: IndexedCorpus, writer: IndexedWriter, documents: range, digest: BlockDigest | None = None) -> None:
    """Copies consecutive documents; their bytes go into `digest` too."""
    borders = np.array(corpus.borders[documents.start : documents.stop + 1])
    lengths_Q = corpus.lengths_Q[borders[0] : borders[-1]]
    first = int(corpus.offsets_Q[borders[0]]) // corpus.dtype.itemsize if lengths_Q.size else 0
    ids_T = corpus.tokens_T[first : first + int(lengths_Q.sum(dtype=np.int64))]
    if ids_T.size != int(lengths_Q.sum(dtype=np.int64)):
        raise DataError(f"{corpus.idx}: its lengths reach beyond {corpus.bin}; check it with data_prep/verify.py")
    writer.add_documents(ids_T, lengths_Q, np.diff(borders))
    if digest is not None:
        digest.update(np.ascontiguousarray(ids_T).view(np.uint8).data)


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
