"""Cuts a corpus into several: into runs of documents of about equal tokens, or into named shares such as train and
valid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np

from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.prep.command import Parser, positive, progress, run, say
from megaswitch.data.prep.merge import copy, document_ranges
from megaswitch.data.split import parse_weight, split_documents
from megaswitch.data.writer import IndexedWriter
from megaswitch.utils.errors import DataError, UserError


def split_evenly(corpus: IndexedCorpus, output: str, parts: int) -> list[str]:
    """Writes `output`-00000 and so on; joined in order they are the corpus again. Returns the prefixes.

    UserError where there are fewer documents than parts.
    """
    if corpus.num_documents < parts:
        raise UserError(f"{corpus.prefix} has {corpus.num_documents} documents, fewer than {parts} parts")
    starts_D, lengths_D = corpus.document_extents()
    goals = corpus.num_tokens * np.arange(1, parts) // parts
    middles_D = starts_D + lengths_D // 2
    wanted = np.searchsorted(middles_D, goals)
    # Every part has a document: cuts are pushed apart where one document is longer than a part.
    numbers = np.arange(1, parts)
    wanted = np.maximum.accumulate(np.maximum(wanted, numbers) - numbers) + numbers
    wanted = np.minimum(wanted, corpus.num_documents - parts + numbers)
    cuts = [0, *wanted.tolist(), corpus.num_documents]
    prefixes = [f"{output}-{number:05d}" for number in range(parts)]
    _write(corpus, {prefix: [range(*cut)] for prefix, cut in zip(prefixes, pairwise(cuts), strict=True)})
    return prefixes


def split_by_shares(corpus: IndexedCorpus, output: str, shares: dict[str, Fraction]) -> list[str]:
    """Writes `output`-NAME for each share, its documents in order; which fall where depends on their numbers and the
    shares alone. Returns the prefixes. UserError where a share holds no document."""
    total = sum(shares.values())
    chosen = split_documents(corpus.num_documents, tuple(share / total for share in shares.values()))
    corpus.document_extents()
    parts: dict[str, list[range]] = {}
    for name, numbers_N in zip(shares, chosen, strict=True):
        if not numbers_N.size:
            raise UserError(f"the share {name} of {corpus.prefix} holds none of its {corpus.num_documents} documents")
        edges = np.flatnonzero(np.diff(numbers_N) != 1) + 1
        runs = np.split(numbers_N, edges)
        parts[f"{output}-{name}"] = [range(int(run[0]), int(run[-1]) + 1) for run in runs]
    _write(corpus, parts)
    return list(parts)


def _write(corpus: IndexedCorpus, parts: dict[str, list[range]]) -> None:
    if corpus.prefix in map(os.path.normpath, parts):
        raise UserError(f"{corpus.prefix} would be written over; choose another --output")
    facts = corpus.sidecar.tokenizer if corpus.sidecar else None
    sources = corpus.sidecar.sources if corpus.sidecar else []
    with progress("splitting", corpus.num_documents) as advance:
        for prefix, runs in parts.items():
            with IndexedWriter(prefix, corpus.dtype) as writer:
                for documents in runs:
                    for piece in document_ranges(corpus, documents):
                        copy(corpus, writer, piece)
                        advance(len(piece))
                writer.finish(facts, sources, {"split": corpus.idx.stem})


def parse_shares(texts: Sequence[str]) -> dict[str, Fraction]:
    """Names and weights from `train=0.98 valid=0.02`; UserError."""
    shares: dict[str, Fraction] = {}
    for text in texts:
        name, sign, weight = text.partition("=")
        if not sign or not name or "/" in name or name in shares:
            raise UserError(f"--shares: {text!r} is no name and weight; write train=0.98 valid=0.02")
        shares[name] = parse_weight(weight, "--shares")
    if not any(shares.values()):
        raise UserError("--shares: one of the weights has to be above 0")
    return shares


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `data_prep/split.py`; returns its exit code."""
    parser = Parser(
        "Cut a corpus into parts: PREFIX-00000 and so on of about equal tokens, or PREFIX-NAME by shares.",
        "python data_prep/split.py data/docs --parts 8 --output data/docs\n"
        "  python data_prep/split.py data/docs --shares train=0.98 valid=0.02 --output data/docs",
    )
    parser.add_argument("prefix", metavar="PREFIX", help="path without ending")
    parser.add_argument("--output", required=True, metavar="PREFIX")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--parts", type=positive, metavar="N", help="runs of consecutive documents")
    chosen.add_argument("--shares", nargs="+", metavar="NAME=W", help="documents chosen by their number")
    options = parser.parse_args(arguments)

    def work() -> None:
        shares = parse_shares(options.shares) if options.shares else {}
        corpus = IndexedCorpus(options.prefix)
        if corpus.num_documents == 0:
            raise DataError(f"{options.prefix} has no documents")
        if shares:
            prefixes = split_by_shares(corpus, options.output, shares)
        else:
            prefixes = split_evenly(corpus, options.output, options.parts)
        for prefix in prefixes:
            part = IndexedCorpus(prefix)
            say(f"{prefix}: {part.num_documents} documents, {part.num_tokens} tokens")

    return run(work)
