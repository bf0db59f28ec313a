"""Trains a sentencepiece vocabulary with T5's special pieces; the 100 sentinels are added above it by `Tokenizer`, not
in the model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from megaswitch.data.prep.command import Parser, positive, run, say
from megaswitch.data.prep.documents import Reading
from megaswitch.data.prep.inputs import STDIN, Source, find
from megaswitch.data.prep.options import add_reading, reading_of, sources_of
from megaswitch.data.prep.report import Summary
from megaswitch.data.prep.sampling import Languages, choose_lines
from megaswitch.data.spans import NUM_SENTINELS
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.data.writer import write_files
from megaswitch.utils.errors import DataError, UserError

_SMALLEST = 10
_LONGEST_SENTENCE = 16_384  # bytes; sentencepiece leaves longer ones out


@dataclass(frozen=True)
class TrainingOptions:
    """How a vocabulary is trained; special pieces and normalisation are T5's."""

    vocab_size: int
    """Pieces in the `.model`; ids are 100 more."""

    character_coverage: float = 0.9999
    """Share of the text's characters that get a piece; the rest become unknown. 1.0 for small alphabets."""

    max_sentences: int = 2_000_000
    """Lines trained on; of a larger corpus a fixed random choice is taken."""

    byte_fallback: bool = False
    """Characters without a piece become their bytes, 256 more pieces, instead of unknown (mT5 does so)."""


def train(lines: list[str], options: TrainingOptions) -> bytes:
    """The bytes of a `.model`, the same for the same lines and options; DataError where the lines are too few for the
    vocabulary."""
    if not lines:
        raise DataError("the input holds no text to train a vocabulary on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=options.vocab_size,
            model_type="unigram",
            character_coverage=options.character_coverage,
            normalization_rule_name="nmt_nfkc",
            byte_fallback=options.byte_fallback,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece="<pad>",
            eos_piece="</s>",
            unk_piece="<unk>",
            max_sentence_length=_LONGEST_SENTENCE,
            num_threads=1,  # threads add floating-point sums in changing order
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).rsplit("] ", 1)[-1].strip() or "the trainer gave no reason"
        raise DataError(
            f"no vocabulary of {options.vocab_size} pieces can be trained on {len(lines)} lines of text: {reason} "
            "Give more text or a smaller --vocab-size"
        ) from None
    return model.getvalue()


def vocabulary_bytes(model: bytes) -> bytes:
    """The `.vocab`: a line for each piece, with its score, in order of ids."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = range(processor.get_piece_size())
    return "".join(f"{processor.id_to_piece(i)}\t{processor.get_score(i):g}\n" for i in pieces).encode()


def train_files(
    groups: Sequence[list[Source]], output: str, options: TrainingOptions, reading: Reading, languages: Languages
) -> Tokenizer:
    """Trains on the documents of the sources, a group for each item of the input; writes `output`.model and `.vocab`;
    returns the tokenizer as read back."""
    if options.vocab_size < _SMALLEST:
        raise UserError(
            f"--vocab-size {options.vocab_size} is too small: three pieces are special; give {_SMALLEST} or more"
        )
    summary = Summary()
    lines = choose_lines(groups, reading, languages, options.max_sentences, summary)
    summary.say()
    model = train(lines, options)
    stem = output.removesuffix(".model")
    write_files({Path(f"{stem}.vocab"): vocabulary_bytes(model), Path(f"{stem}.model"): model})
    return Tokenizer(f"{stem}.model")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `data_prep/train_tokenizer.py`; returns its exit code."""
    parser = Parser(
        f"Train a vocabulary of N pieces; with T5's sentinels that makes N + {NUM_SENTINELS} ids. Writes M.model and "
        f"M.vocab.",
        "python data_prep/train_tokenizer.py --input docs.jsonl --vocab-size 3996 --output docs\n"
        "  python data_prep/train_tokenizer.py --input en.jsonl de.jsonl ja.jsonl --temperature 3.33 \\\n      "
        "--vocab-size 32000 --character-coverage 0.99999 --byte-fallback --output multi",
    )
    add_reading(parser)
    parser.add_argument("--vocab-size", type=positive, required=True, metavar="N", help="pieces, sentinels not counted")
    parser.add_argument("--output", required=True, metavar="M", help="path, with or without .model")
    defaults = TrainingOptions(0)
    parser.add_argument(
        "--character-coverage",
        type=float,
        default=defaults.character_coverage,
        metavar="P",
        help=f"share of the text's characters that get a piece (default: {defaults.character_coverage})",
    )
    parser.add_argument(
        "--byte-fallback", action="store_true", help="write other characters as bytes: 256 of the pieces go to these"
    )
    parser.add_argument(
        "--max-sentences",
        type=positive,
        default=defaults.max_sentences,
        metavar="N",
        help=f"lines trained on, a fixed random choice of a larger input (default: {defaults.max_sentences})",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="take lines of each language in proportion n^(1/T); mT5's is 3.33 (default: 1, as they come)",
    )
    parser.add_argument(
        "--language-key",
        default="",
        metavar="FIELD",
        help="field that names the language; without it each item of --input is a language",
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        if not 0.5 <= options.character_coverage <= 1:
            raise UserError(f"--character-coverage {options.character_coverage} must lie between 0.5 and 1")
        if not options.temperature >= 1:
            raise UserError(f"--temperature {options.temperature} must be 1 or more")
        if options.temperature > 1 and STDIN in options.input:
            raise UserError("--temperature reads the input twice, and standard input can be read once: name files")
        sources_of(options)
        groups = [find([item], options.format) for item in options.input]
        chosen = TrainingOptions(
            options.vocab_size, options.character_coverage, options.max_sentences, options.byte_fallback
        )
        languages = Languages(options.temperature, options.language_key)
        tokenizer = train_files(groups, options.output, chosen, reading_of(options), languages)
        say(f"{tokenizer.path}: {tokenizer.num_pieces} pieces, {tokenizer.vocab_size} ids with the sentinels")

    return run(work)
