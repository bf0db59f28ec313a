"""One split of a blend of corpora as numbered samples: a batch is a function of (seed, global sample index) and of
nothing else.

Shape suffixes: B samples, L raw tokens of a piece, K corpora.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import orjson
import xxhash

from megaswitch.data.batch import Batch, shift_right
from megaswitch.data.blend import Blend, integer_weights, parse_corpora
from megaswitch.data.config import DataConfig
from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.rng import derive, derive_each
from megaswitch.data.sidecar import TokenizerFacts
from megaswitch.data.spans import SpanPlan, corrupt, plan_spans
from megaswitch.data.split import SPLITS, SplitName, parse_split, split_documents
from megaswitch.data.stream import Documents, Stream
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.utils.errors import DataError, UserError

logger = logging.getLogger(__name__)

_MASKS = 0x6D61736B73  # purpose of a sample's key, "masks"


@dataclass(frozen=True)
class Part:
    """One corpus of a dataset: its stream of tokens, its weight and the samples of one epoch (the last one runs on into
    the next)."""

    corpus: IndexedCorpus
    stream: Stream
    weight: Fraction
    num_samples: int


class SpanCorruptionDataset:
    """The samples of one split. Made by `open_split`; safe to share by threads."""

    def __init__(self, parts: list[Part], plan: SpanPlan, *, seed: int, repeat: bool, fingerprint: str) -> None:
        self.plan = plan
        self.repeat = repeat
        self.fingerprint = fingerprint
        """Hash of what the data is: tokenizer, counts, checksums where known, split, weights and lengths. Paths and
        seed are not in it."""
        self._parts = parts
        self._masks_key = derive(seed, _MASKS)
        weights = integer_weights([part.weight for part in parts]) if repeat else [part.num_samples for part in parts]
        self._blend = Blend(weights)
        passes = (-(-part.num_samples * sum(weights) // weight) for part, weight in zip(parts, weights, strict=True))
        self.num_samples: int = max(passes)
        """Samples after which every token of every corpus has been seen: one epoch of the largest corpus for its
        weight."""

    def batch(self, first: int, count: int) -> Batch:
        """Samples first .. first + count - 1. Without `repeat` those from `num_samples` on are rows of zeros.

        DataError where a document holds an id outside the vocabulary, or a file shrank since it was opened.
        """
        if first < 0 or count < 0:
            raise UserError(f"samples {first} to {first + count} were asked for; they are numbered from 0")
        samples_B = np.arange(first, first + count, dtype=np.int64)
        real = count if self.repeat else min(max(self.num_samples - first, 0), count)
        encoder_ids_BS = np.zeros((count, self.plan.encoder_length), np.int64)
        targets_BT = np.zeros((count, self.plan.decoder_length), np.int64)
        raw_BL = self._read(first, real)
        keys_B = derive_each(self._masks_key, samples_B[:real].astype(np.uint64))
        encoder_ids_BS[:real], targets_BT[:real] = corrupt(raw_BL, keys_B, self.plan)
        return Batch(encoder_ids_BS, shift_right(targets_BT), targets_BT, samples_B)

    def _read(self, first: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """The raw pieces of samples first .. first + count - 1, int64 of shape (B, L)."""
        raw_BL = np.empty((count, self.plan.raw_length), np.int64)
        corpus_B, within_B = self._blend.locate(first, count)
        for part in self._parts:
            part.corpus.check_unchanged()
        for raw_L, number, within in zip(raw_BL, corpus_B.tolist(), within_B.tolist(), strict=True):
            self._parts[number].stream.read(within * self.plan.raw_length, raw_L)
        return raw_BL


def open_split(
    config: DataConfig,
    split: SplitName,
    *,
    encoder_length: int,
    decoder_length: int,
    vocab_size: int,
    seed: int,
    repeat: bool = True,
) -> SpanCorruptionDataset:
    """Opens one split of the configured corpora: endless with `repeat` (training), one pass without (evaluation).

    Lengths are positions of the model, `vocab_size` is the model's. Every problem with files, tokenizer, weights or
    lengths is a DataError that says what to do; MissingInputError where a file is not there, UserError where a
    setting cannot work.
    """
    assert split in SPLITS, split
    own = split == "valid" and bool(config.valid.strip())
    key, text = ("data.valid", config.valid) if own else ("data.train", config.train)
    chosen = [(weight, IndexedCorpus(prefix)) for weight, prefix in parse_corpora(text, key)]
    tokenizer = find_tokenizer(config, [corpus for _, corpus in chosen], vocab_size)
    plan = plan_spans(
        encoder_length, decoder_length, tokenizer.vocab_size - 1, config.noise_density, config.mean_span_length
    )
    shares = (Fraction(1),) if own else split_shares(config)
    index = 0 if own else SPLITS.index(split)
    parts = []
    for number, (weight, corpus) in enumerate(chosen):
        documents = _documents(corpus, shares, index, split)
        stream = Stream(documents, vocab_size, seed, number)
        if not repeat:
            _check_holds_a_piece(stream, plan, split)
        parts.append(Part(corpus, stream, weight, -(-stream.num_tokens // plan.raw_length)))
    if not repeat and len({part.weight for part in parts}) > 1:
        logger.info(
            "the %s split is passed over once, each sample counting once; the weights of its corpora do not matter",
            split,
        )
    fingerprint = _fingerprint(parts, plan, tokenizer, [split, *(str(share) for share in shares)])
    return SpanCorruptionDataset(parts, plan, seed=seed, repeat=repeat, fingerprint=fingerprint)


def split_shares(config: DataConfig) -> tuple[Fraction, ...]:
    """Shares of train, validation and test in `data.train`; with `data.valid` set, training takes the validation part
    too."""
    train, valid, test = parse_split(config.split)
    return (train + valid, Fraction(0), test) if config.valid.strip() else (train, valid, test)


def find_tokenizer(config: DataConfig, corpora: list[IndexedCorpus], vocab_size: int) -> TokenizerFacts:
    """The tokenizer of all corpora, from `data.tokenizer` or the sidecars, which must agree and fit the model's
    vocabulary."""
    known: dict[str, TokenizerFacts] = {}
    if config.tokenizer.strip():
        known[config.tokenizer] = Tokenizer(config.tokenizer).facts
    known |= {f"{c.prefix}.json": c.sidecar.tokenizer for c in corpora if c.sidecar and c.sidecar.tokenizer}
    if not known:
        raise UserError(
            f"the tokenizer of {corpora[0].prefix} is not known, hence not where its sentinels are: set "
            f"data.tokenizer to its .model"
        )
    (first_name, first), *others = known.items()
    for name, facts in others:
        if facts != first:
            raise DataError(
                f"{name} speaks of another tokenizer ({facts.pieces} pieces, {facts.fingerprint[:8]}) than "
                f"{first_name} "
                f"({first.pieces} pieces, {first.fingerprint[:8]}): prepare the corpora with one tokenizer and set "
                f"data.tokenizer to it"
            )
    if first.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer of {first_name} has {first.vocab_size} ids ({first.pieces} pieces, {first.sentinels} "
            f"sentinels), the model "
            f"only {vocab_size}: set model.vocab_size to {first.vocab_size} or more, or train a smaller tokenizer"
        )
    return first


def _documents(corpus: IndexedCorpus, shares: tuple[Fraction, ...], index: int, split: str) -> Documents:
    if corpus.num_documents == 0 or corpus.num_tokens == 0:
        raise DataError(
            f"the corpus {corpus.prefix} is empty ({corpus.num_documents} documents, {corpus.num_tokens} tokens)"
        )
    numbers_N = split_documents(corpus.num_documents, shares)[index]
    if numbers_N.size == 0:
        raise DataError(
            f"the {split} split of {corpus.prefix} has no documents: of {corpus.num_documents} documents data.split "
            f"gives it a share of "
            f"{float(shares[index]):g}; raise that share{', or set data.valid' if split == 'valid' else ''}"
        )
    starts_D, lengths_D = corpus.document_extents()
    return Documents(corpus.prefix, corpus.tokens_T, numbers_N, starts_D[numbers_N], lengths_D[numbers_N])


def _check_holds_a_piece(stream: Stream, plan: SpanPlan, split: str) -> None:
    if stream.num_tokens < plan.raw_length:
        raise DataError(
            f"the {split} split of {stream.documents.prefix} has {stream.num_tokens} tokens in "
            f"{stream.documents.numbers_N.size} documents, "
            f"fewer than one sample takes ({plan.raw_length}): raise its share in data.split, or give a larger corpus"
        )


def _fingerprint(parts: list[Part], plan: SpanPlan, tokenizer: TokenizerFacts, split: list[str]) -> str:
    corpora = [
        {
            "weight": str(part.weight),
            "dtype": part.corpus.dtype.name,
            "counts": [part.corpus.num_sequences, part.corpus.num_documents, part.corpus.num_tokens],
            "checksums": part.corpus.sidecar.checksums if part.corpus.sidecar else None,
        }
        for part in parts
    ]
    facts = {"tokenizer": tokenizer.fingerprint, "split": split, "raw_length": plan.raw_length, "corpora": corpora}
    spans = [plan.noise, plan.spans, plan.first_sentinel]
    content = orjson.dumps({**facts, "spans": spans}, option=orjson.OPT_SORT_KEYS)
    return str(xxhash.xxh3_128_hexdigest(content))
