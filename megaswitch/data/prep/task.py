"""Prepares a text-to-text task: pairs as a corpus whose documents are two sequences, inputs and targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megaswitch.data.layout import dtype_for
from megaswitch.data.prep.command import Parser, progress, run, say
from megaswitch.data.sidecar import Sidecar
from megaswitch.data.tasks import RawPairs, is_raw
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.data.writer import IndexedWriter
from megaswitch.utils.errors import UserError

_PAIRS_AT_ONCE = 4096


def prepare_task(source: str, model: str, output: str) -> Sidecar:
    """Writes the corpus `output` from a `.tsv` or `.jsonl` of pairs; DataError names the first line that is none."""
    if not is_raw(source):
        raise UserError(f"{source}: a task is a .tsv (inputs, a tab, targets) or a .jsonl (inputs and targets) file")
    tokenizer = Tokenizer(model)
    pairs = RawPairs(source, tokenizer)
    dtype = dtype_for(tokenizer.vocab_size)
    with IndexedWriter(output, dtype) as writer, progress("tokenising pairs", len(pairs)) as advance:
        for first in range(0, len(pairs), _PAIRS_AT_ONCE):
            numbers = range(first, min(first + _PAIRS_AT_ONCE, len(pairs)))
            ids = tokenizer.encode_batch([text for number in numbers for text in pairs.texts(number)])
            lengths_Q = np.array([len(one) for one in ids], np.int64)
            flat = np.concatenate([np.array(one, dtype) for one in ids])
            writer.add_documents(flat, lengths_Q, np.full(len(numbers), 2))
            advance(len(numbers))
        return writer.finish(tokenizer.facts, [source], {"task": True})


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(
        "Prepares a text-to-text task, for data.train=task:PREFIX; needed for data.packing, faster without.",
        "python data_prep/prepare_task.py --input translate.tsv --tokenizer docs.model --output data/translate",
    )
    parser.add_argument("--input", required=True, help="a .tsv (inputs, a tab, targets) or a .jsonl (inputs, targets)")
    parser.add_argument("--tokenizer", required=True, help="a sentencepiece .model")
    parser.add_argument("--output", required=True, help="prefix of the files to write")
    options = parser.parse_args(argv)

    def work() -> None:
        done = prepare_task(options.input, options.tokenizer, options.output)
        say(f"{options.output}: {done.documents} pairs, {done.tokens} ids")

    return run(work)
