"""Trains a sentencepiece vocabulary with T5's special pieces; the 100 sentinels are added above it by `Tokenizer`, not
in the model."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece

from megaswitch.data.prep.command import Parser, positive, run, say
from megaswitch.data.prep.documents import OnBad, Report, read_lines, read_texts
from megaswitch.data.rng import bounded, derive
from megaswitch.data.spans import NUM_SENTINELS
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.data.writer import write_files
from megaswitch.utils.errors import DataError, UserError

_SAMPLE_KEY = derive(0x73656E74)  # "sent": which sentences --max-sentences keeps
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


def sentences(texts: Iterable[str], limit: int) -> list[str]:
    """Non-empty lines of the texts, at most `limit`: a uniform choice (reservoir sampling) that depends on the texts
    alone."""
    kept: list[str] = []
    for number, line in enumerate(_lines(texts)):
        if number < limit:
            kept.append(line)
            continue
        counter, bound = np.array([number], np.uint64), np.array([number + 1], np.uint64)
        place = int(bounded(_SAMPLE_KEY, counter, bound)[0])
        if place < limit:
            kept[place] = line
    return kept


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.splitlines():
            clean = line.strip().replace("\0", "")
            if clean:
                yield clean


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
            byte_fallback=False,
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
            f"Give more text or a "
            "smaller --vocab-size"
        ) from None
    return model.getvalue()


def vocabulary_bytes(model: bytes) -> bytes:
    """The `.vocab`: a line for each piece, with its score, in order of ids."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = range(processor.get_piece_size())
    return "".join(f"{processor.id_to_piece(i)}\t{processor.get_score(i):g}\n" for i in pieces).encode()


def train_files(inputs: Sequence[Path], output: str, options: TrainingOptions, key: str, on_bad: OnBad) -> Tokenizer:
    """Trains on jsonl or text files and writes `output`.model and `.vocab`; returns the tokenizer as read back."""
    if options.vocab_size < _SMALLEST:
        raise UserError(
            f"--vocab-size {options.vocab_size} is too small: three pieces are special; give {_SMALLEST} or more"
        )
    report = Report()
    texts = (text for chunk in read_lines(inputs) for text in read_texts(chunk, key, on_bad, report))
    lines = sentences(texts, options.max_sentences)
    report.say()
    model = train(lines, options)
    stem = output.removesuffix(".model")
    write_files({Path(f"{stem}.vocab"): vocabulary_bytes(model), Path(f"{stem}.model"): model})
    return Tokenizer(f"{stem}.model")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `data_prep/train_tokenizer.py`; returns its exit code."""
    parser = Parser(
        f"Train a vocabulary of N pieces; with T5's sentinels that makes N + {NUM_SENTINELS} ids. Writes M.model and "
        f"M.vocab.",
        "python data_prep/train_tokenizer.py --input docs.jsonl --vocab-size 3996 --output docs",
    )
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="F", help=".jsonl or .txt files")
    parser.add_argument("--vocab-size", type=positive, required=True, metavar="N", help="pieces, sentinels not counted")
    parser.add_argument("--output", required=True, metavar="M", help="path, with or without .model")
    parser.add_argument("--key", default="text", help="field of the JSON objects that holds the text (default: text)")
    parser.add_argument("--character-coverage", type=float, default=TrainingOptions.character_coverage)
    parser.add_argument("--max-sentences", type=positive, default=TrainingOptions.max_sentences)
    parser.add_argument(
        "--on-bad", choices=["refuse", "skip", "replace"], default="refuse", help="see preprocess.py --help"
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        if not 0.5 <= options.character_coverage <= 1:
            raise UserError(f"--character-coverage {options.character_coverage} must lie between 0.5 and 1")
        chosen = TrainingOptions(options.vocab_size, options.character_coverage, options.max_sentences)
        tokenizer = train_files(options.input, options.output, chosen, options.key, options.on_bad)
        say(f"{tokenizer.path}: {tokenizer.num_pieces} pieces, {tokenizer.vocab_size} ids with the sentinels")

    return run(work)
