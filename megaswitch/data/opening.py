"""Opens a split: from keys to a dataset, with every refusal that files, tokenizer, weights and lengths can bring."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from megaswitch.data import index
from megaswitch.data.config import DataConfig
from megaswitch.data.dataset import Dataset, Member, Shape, fingerprint_facts
from megaswitch.data.denoise import Rule
from megaswitch.data.index import IndexStore
from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.mixture import Entry, parse_entries, parse_sets, temperature_weights
from megaswitch.data.objectives import Objective, parse_modes, plan
from megaswitch.data.packing import PackedPart, packed_rules
from megaswitch.data.parts import Part, Special, StreamPart
from megaswitch.data.sidecar import TokenizerFacts
from megaswitch.data.split import SPLITS, SplitName, parse_split, split_documents
from megaswitch.data.stream import Documents, Epochs, Stream
from megaswitch.data.tasks import PreparedPairs, RawPairs, TaskPart, is_raw
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.utils.errors import DataError, UserError

logger = logging.getLogger(__name__)

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Wanted:
    """What of the corpora is wanted: the split, and what samples look like."""

    config: DataConfig
    split: SplitName
    shares: tuple[Fraction, ...]
    objective: Objective
    lengths: tuple[int, int]
    seed: int
    repeat: bool

    @property
    def index(self) -> int:
        """The split's place among the shares."""
        return 0 if len(self.shares) == 1 else SPLITS.index(self.split)


@dataclass(frozen=True)
class Source:
    """One opened corpus, or the text of a task."""

    entry: Entry
    corpus: IndexedCorpus | None


def open_split(
    config: DataConfig,
    split: SplitName,
    *,
    encoder_length: int,
    decoder_length: int,
    vocab_size: int,
    seed: int,
    objective: Objective = "span_corruption",
    repeat: bool = True,
) -> Dataset:
    """Opens one split of the configured corpora: endless with `repeat` (training), one pass without (evaluation).

    Lengths are positions of the model, `vocab_size` is the model's. Every problem with files, tokenizer, weights or
    lengths is a DataError that says what to do; MissingInputError where a file is not there, UserError where a
    setting cannot work.
    """
    assert split in SPLITS, split
    own = split == "valid" and bool(config.valid.strip())
    key, text = ("data.valid", config.valid) if own else ("data.train", config.train)
    entries = parse_entries(text, key, temperature=0.0 if own else config.temperature)
    shares = (Fraction(1),) if own else split_shares(config)
    wanted = Wanted(config, split, shares, objective, (encoder_length, decoder_length), seed, repeat)
    sources = [Source(e, None if is_raw(e.task or "") else IndexedCorpus(e.task or e.source)) for e in entries]
    tokenizer = find_tokenizer(config, sources, vocab_size)
    rules = _rules(wanted, sources, tokenizer)
    special = Special(tokenizer.vocab_size - 1, vocab_size)
    members = [_member(wanted, source, rules, number) for number, source in enumerate(sources)]
    if config.temperature and not own:
        sizes = [member.part.num_samples for member in members]
        weights = temperature_weights(sizes, config.temperature)
        members = [replace(member, weight=weight) for member, weight in zip(members, weights, strict=True)]
    if not repeat and len({member.weight for member in members}) > 1:
        logger.info(
            "the %s split is passed over once, each sample counting once; the weights of its corpora do not matter",
            split,
        )
    return Dataset(
        members,
        Shape(wanted.lengths, special, config.packing),
        seed=seed,
        repeat=repeat,
        fingerprint=_fingerprint(wanted, members, rules, special, tokenizer),
        threads=config.threads,
    )


def open_sets(config: DataConfig, **settings: object) -> dict[str, Dataset]:
    """The validation sets by name, each opened for one pass; "" where there is one without a name. Arguments as for
    `open_split`."""
    texts = parse_sets(config.valid, "data.valid") if config.valid.strip() else {"": ""}
    return {
        name: open_split(replace(config, valid=text), "valid", repeat=False, **settings)  # type: ignore[arg-type]
        for name, text in texts.items()
    }


def split_shares(config: DataConfig) -> tuple[Fraction, ...]:
    """Shares of train, validation and test in `data.train`; with `data.valid` set, training takes the validation part
    too."""
    train, valid, test = parse_split(config.split)
    return (train + valid, Fraction(0), test) if config.valid.strip() else (train, valid, test)


def find_tokenizer(config: DataConfig, sources: list[Source], vocab_size: int) -> TokenizerFacts:
    """The tokenizer of all corpora, from `data.tokenizer` or the sidecars, which must agree and fit the model's
    vocabulary."""
    known: dict[str, TokenizerFacts] = {}
    if config.tokenizer.strip():
        known[config.tokenizer] = Tokenizer(config.tokenizer).facts
    corpora = [source.corpus for source in sources if source.corpus is not None]
    known |= {f"{c.prefix}.json": c.sidecar.tokenizer for c in corpora if c.sidecar and c.sidecar.tokenizer}
    if not known:
        raise UserError(
            f"the tokenizer of {sources[0].entry.source} is not known, hence not where its sentinels are: set "
            f"data.tokenizer to its .model"
        )
    (first_name, first), *others = known.items()
    for name, facts in others:
        if facts != first:
            raise DataError(
                f"{name} speaks of another tokenizer ({facts.pieces} pieces, {facts.fingerprint[:8]}) than "
                f"{first_name} ({first.pieces} pieces, {first.fingerprint[:8]}): prepare the corpora with one "
                f"tokenizer and set data.tokenizer to it"
            )
    if first.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer of {first_name} has {first.vocab_size} ids ({first.pieces} pieces, {first.sentinels} "
            f"sentinels), the model only {vocab_size}: set model.vocab_size to {first.vocab_size} or more, or train a "
            f"smaller tokenizer"
        )
    return first


def _rules(wanted: Wanted, sources: list[Source], tokenizer: TokenizerFacts) -> list[Rule]:
    """What becomes of text; nothing where there are only tasks."""
    if all(source.entry.task for source in sources):
        return []
    config = wanted.config
    if config.packing:
        if wanted.objective != "span_corruption":
            raise UserError(
                f"data.packing does not go with train.objective={wanted.objective}, whose samples have no length of "
                f"their own: set data.packing=false"
            )
        return packed_rules(*wanted.lengths, config.noise_density, config.mean_span_length)
    if max(parse_modes(config.mode_tokens)) >= tokenizer.pieces:
        raise UserError(f"data.mode_tokens={config.mode_tokens}: the tokenizer has pieces up to {tokenizer.pieces - 1}")
    return plan(wanted.objective, *wanted.lengths, config)


def _member(wanted: Wanted, source: Source, rules: list[Rule], number: int) -> Member:
    entry, corpus, seeds = source.entry, source.corpus, (wanted.seed, number)
    weight = entry.weight or Fraction(1)
    if entry.task:
        pairs = RawPairs(entry.task, Tokenizer(wanted.config.tokenizer)) if corpus is None else PreparedPairs(corpus)
        facts = _facts(entry.task, corpus, wanted)
        numbers_P = _numbers(len(pairs), wanted, entry.source)
        store = _store(entry.task, wanted)
        task = TaskPart(entry.task, pairs, numbers_P, wanted.lengths, wanted.config.packing, store, facts, *seeds)
        return Member(entry.source, weight, task, corpus)
    assert corpus is not None, "what is no task is a corpus"
    store, facts = _store(corpus.prefix, wanted), _facts(corpus.prefix, corpus, wanted)
    documents = _documents(corpus, wanted, store, facts)
    if documents.num_tokens == 0:
        raise DataError(f"{documents.prefix}: the documents hold no tokens; prepare the corpus again")
    part: Part
    if wanted.config.packing:
        part = PackedPart(documents, rules, wanted.lengths, store, facts, *seeds)
    else:
        stream = Stream(documents, Epochs(documents.lengths_N, store, facts, *seeds))
        if not wanted.repeat:
            _check_holds_a_piece(stream, rules, wanted.split)
        part = StreamPart(stream, rules)
    return Member(entry.source, weight, part, corpus)


def _store(prefix: str, wanted: Wanted) -> IndexStore:
    return IndexStore(Path(wanted.config.index_dir or f"{prefix}.index"))


def _facts(path: str, corpus: IndexedCorpus | None, wanted: Wanted) -> tuple[object, ...]:
    """What the indexes of a corpus depend on: its content, as far as it is known, and the split."""
    split = (*(str(share) for share in wanted.shares), wanted.index)
    if corpus is None:
        return ("text", Path(path).stat().st_size, *split)
    if corpus.sidecar is not None and "idx" in corpus.sidecar.checksums:
        return (corpus.sidecar.checksums["idx"], *split)
    status = corpus.idx.stat()
    return (str(corpus.idx.resolve()), status.st_size, status.st_mtime_ns, *split)


def _numbers(count: int, wanted: Wanted, name: str) -> Int64s:
    """The numbers of a split's documents, ascending."""
    numbers_N = split_documents(count, wanted.shares)[wanted.index]
    if numbers_N.size == 0:
        raise DataError(
            f"the {wanted.split} split of {name} has no documents: of {count} documents data.split gives it a share of "
            f"{float(wanted.shares[wanted.index]):g}; raise that share"
            f"{', or set data.valid' if wanted.split == 'valid' else ''}"
        )
    return numbers_N


def _documents(corpus: IndexedCorpus, wanted: Wanted, store: IndexStore, facts: tuple[object, ...]) -> Documents:
    if corpus.num_documents == 0 or corpus.num_tokens == 0:
        raise DataError(
            f"the corpus {corpus.prefix} is empty ({corpus.num_documents} documents, {corpus.num_tokens} tokens)"
        )

    def build() -> list[Int64s]:
        numbers_N = _numbers(corpus.num_documents, wanted, corpus.prefix)
        starts_D, lengths_D = corpus.document_extents()
        if numbers_N.size == starts_D.size:
            return [numbers_N, starts_D, lengths_D]
        return [numbers_N, starts_D[numbers_N], lengths_D[numbers_N]]

    arrays = store.arrays(("documents", *facts), build, corpus.num_documents)
    return Documents(corpus.prefix, corpus.tokens_T, *arrays)


def _check_holds_a_piece(stream: Stream, rules: list[Rule], split: str) -> None:
    needed = max(rule.length for rule in rules)
    if stream.num_tokens < needed:
        raise DataError(
            f"the {split} split of {stream.documents.prefix} has {stream.num_tokens} tokens in "
            f"{stream.documents.numbers_N.size} documents, fewer than one sample takes ({needed}): raise its share in "
            f"data.split, or give a larger corpus"
        )


def _fingerprint(
    wanted: Wanted, members: list[Member], rules: list[Rule], special: Special, tokenizer: TokenizerFacts
) -> str:
    content = {
        "rules": [index.RULES, *(rule.numbers() for rule in rules)],
        "tokenizer": tokenizer.fingerprint,
        "split": [wanted.split, *(str(share) for share in wanted.shares)],
        "lengths": wanted.lengths,
        "packing": wanted.config.packing,
        "first_sentinel": special.first_sentinel,
        "corpora": fingerprint_facts(members),
    }
    return str(xxhash.xxh3_128_hexdigest(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)))
