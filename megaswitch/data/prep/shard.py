"""Turns one shard of the inputs into a corpus of its own, and knows which shards are done.

Shape suffixes: T tokens, Q sequences, D documents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.layout import dtype_for, idx_path
from megaswitch.data.prep.documents import EMPTY, Reader
from megaswitch.data.prep.plan import Plan, tokenizer_of
from megaswitch.data.prep.report import Report
from megaswitch.data.prep.sentences import split_sentences
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.data.writer import IndexedWriter
from megaswitch.utils.errors import UserError

_AHEAD = 2


@dataclass(frozen=True)
class Encoded:
    """Documents as ids end to end, the length of each sequence and the sequences of each document."""

    ids_T: NDArray[np.integer[Any]]
    lengths_Q: NDArray[np.int64]
    sequences_D: NDArray[np.int64]


def encode(tokenizer: Tokenizer, texts: list[str], sentences: bool, threads: int = 1) -> Encoded:
    """Encodes documents; those of which normalisation leaves nothing are left out, as are such sentences."""
    parts = [split_sentences(text) for text in texts] if sentences else None
    pieces = texts if parts is None else [sentence for part in parts for sentence in part]
    ids = tokenizer.encode_arrays(pieces, threads) if pieces else []
    lengths_Q = np.fromiter(map(len, ids), np.int64, len(ids))
    if parts is None:
        per_document = (lengths_Q > 0).astype(np.int64)
    else:
        ends = np.array([0, *accumulate(map(len, parts))])
        per_document = np.diff(np.concatenate([[0], np.cumsum(lengths_Q > 0)])[ends])
    dtype = dtype_for(tokenizer.vocab_size)
    ids_T = np.concatenate(ids).astype(dtype) if ids else np.empty(0, dtype)
    return Encoded(ids_T, lengths_Q[lengths_Q > 0], per_document[per_document > 0])


def write_shard(plan: Plan, number: int, threads: int = 1) -> int:
    """Writes the corpus of one shard; returns its number. With several threads, reading goes on beside encoding.

    DataError for what is refused, damaged inputs, and a model that is no longer the plan's.
    """
    tokenizer = tokenizer_of(plan.encoding.model)
    if tokenizer.fingerprint != plan.encoding.fingerprint:
        raise UserError(f"{tokenizer.path} has changed since the plan was made; put it back, or begin again")
    shard, report = plan.shards[number], Report()
    reader = Reader(plan.reading, report)
    blocks = (texts for part in shard.slices for texts in reader.texts(part))
    with IndexedWriter(plan.prefix(number), dtype_for(tokenizer.vocab_size), durable=False) as writer:
        for texts in _read_ahead(blocks) if threads > 1 else blocks:
            encoded = encode(tokenizer, texts, plan.encoding.sentences, threads)
            writer.add_documents(encoded.ids_T, encoded.lengths_Q, encoded.sequences_D)
            vanished = len(texts) - encoded.sequences_D.size
            if vanished:
                report.documents -= vanished
                report.kinds[EMPTY] += vanished
        writer.finish(tokenizer.facts, [], {"shard": plan.digest(number), "report": report.to_dict()})
    return number


def report_of(plan: Plan, number: int) -> Report | None:
    """What was met in a shard that is done; None for one that is not, or was made from something else."""
    if not os.path.exists(idx_path(plan.prefix(number))):
        return None
    with suppress(UserError, KeyError, TypeError, ValueError):
        sidecar = IndexedCorpus(plan.prefix(number)).sidecar
        if sidecar is not None and sidecar.options.get("shard") == plan.digest(number):
            return Report.from_dict(sidecar.options["report"])
    return None


def _read_ahead(blocks: Iterator[list[str]]) -> Iterator[list[str]]:
    """The same blocks, made in a thread while others are worked on; an error there is raised here."""
    waiting: Queue[list[str] | BaseException | None] = Queue(_AHEAD)

    def fill() -> None:
        try:
            for block in blocks:
                waiting.put(block)
            waiting.put(None)
        except BaseException as error:
            waiting.put(error)

    Thread(target=fill, daemon=True).start()
    while (block := waiting.get()) is not None:
        if isinstance(block, BaseException):
            raise block
        yield block
