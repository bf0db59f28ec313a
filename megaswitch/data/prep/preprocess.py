"""Text files to a corpus on disk. Chunks of lines go to worker processes; results are written in input order.

The bytes of the corpus therefore do not depend on the number of workers. Documents are stored without EOS.

Shape suffixes: T tokens of a chunk, D documents of a chunk.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megaswitch.data.layout import dtype_for
from megaswitch.data.prep.command import Parser, positive, progress, run, say
from megaswitch.data.prep.documents import EMPTY, Chunk, OnBad, Report, check_inputs, read_lines, read_texts
from megaswitch.data.sidecar import Sidecar
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.data.writer import IndexedWriter
from megaswitch.utils.errors import DataError

_IN_FLIGHT = 4  # chunks a worker: enough to keep it busy, few enough to bound memory


@dataclass(frozen=True)
class Encoding:
    """How lines become ids; the same for every chunk."""

    model: str
    key: str
    on_bad: OnBad


@dataclass(frozen=True)
class Encoded:
    """One chunk's documents: ids end to end in the corpus's dtype, int64 lengths, and what was met on the way."""

    ids_T: NDArray[np.integer]
    lengths_D: NDArray[np.int64]
    report: Report
    size: int


@lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    # A worker reads the model once and keeps it; sending it with every chunk would cost more than encoding.
    return Tokenizer(path)


def encode_chunk(chunk: Chunk, encoding: Encoding) -> Encoded:
    """Parses and encodes one chunk; DataError under the policy `refuse`."""
    tokenizer = _tokenizer(encoding.model)
    report = Report()
    texts = list(read_texts(chunk, encoding.key, encoding.on_bad, report))
    documents = [ids for ids in tokenizer.encode_batch(texts) if ids]
    vanished = len(texts) - len(documents)  # text that normalisation leaves nothing of
    report.kinds[EMPTY] += vanished
    report.documents -= vanished
    report.kinds = +report.kinds
    lengths_D = np.array([len(ids) for ids in documents], np.int64)
    ids_T = np.fromiter(chain.from_iterable(documents), dtype_for(tokenizer.vocab_size), int(lengths_D.sum()))
    return Encoded(ids_T, lengths_D, report, len(chunk.content))


def encode_all(chunks: Iterator[Chunk], encoding: Encoding, workers: int) -> Iterator[Encoded]:
    """Encodes chunks in `workers` processes (in this one for 1) and yields them in order; DataError where a worker
    dies."""
    if workers == 1:
        yield from (encode_chunk(chunk, encoding) for chunk in chunks)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=_ignore_interrupts)
    waiting: deque[Future[Encoded]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(encode_chunk, chunk, encoding))
            if len(waiting) >= workers * _IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError("a worker process died, perhaps for want of memory: try fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    # Ctrl-C reaches the whole group; the parent alone answers it, by removing what was begun.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def preprocess(inputs: Sequence[Path], encoding: Encoding, output: str, workers: int = 1) -> tuple[Sidecar, Report]:
    """Writes the corpus `output` from text files; an error leaves nothing behind, and what was at `output` untouched.

    Raises DataError for bad lines under `refuse` and for an input without documents, MissingInputError for missing
    files.
    """
    tokenizer = _tokenizer(encoding.model)
    total = check_inputs(inputs)
    report = Report()
    with IndexedWriter(output, dtype_for(tokenizer.vocab_size)) as writer, progress("encoding", total) as advance:
        _write_all(encode_all(read_lines(inputs), encoding, workers), writer, report, advance)
        if report.documents == 0:
            report.say()
            raise DataError(
                f"{', '.join(str(path) for path in inputs)}: no documents in the input, nothing was written"
            )
        options = {
            "key": encoding.key,
            "on_bad": encoding.on_bad,
            "left_out_or_repaired": dict(sorted(report.kinds.items())),
        }
        sidecar = writer.finish(tokenizer.facts, [path.name for path in inputs], options)
    return sidecar, report


def _write_all(
    encoded: Iterator[Encoded], writer: IndexedWriter, report: Report, advance: Callable[[int], None]
) -> None:
    for part in encoded:
        writer.add_documents(part.ids_T, part.lengths_D)
        report.add(part.report)
        advance(part.size)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `data_prep/preprocess.py`; returns its exit code."""
    parser = Parser(
        "Turn text into a corpus: PREFIX.bin and PREFIX.idx with the ids, PREFIX.json with what made them.",
        "python data_prep/preprocess.py --input docs.jsonl --tokenizer docs.model --output data/docs --workers 2",
    )
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="F",
        help=".jsonl (an object a line) or .txt (a document a line)",
    )
    parser.add_argument("--tokenizer", required=True, metavar="M.model")
    parser.add_argument(
        "--output", required=True, metavar="PREFIX", help="path without ending; a corpus there is replaced"
    )
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes (default: cores)"
    )
    parser.add_argument("--key", default="text", help="field of the JSON objects that holds the text (default: text)")
    parser.add_argument(
        "--on-bad",
        choices=["refuse", "skip", "replace"],
        default="refuse",
        help="lines that are no valid text: stop (default), leave out, or put U+FFFD for bad characters where possible",
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        encoding = Encoding(options.tokenizer, options.key, options.on_bad)
        sidecar, report = preprocess(options.input, encoding, options.output, options.workers)
        report.say()
        say(f"{options.output}: {sidecar.documents} documents, {sidecar.tokens} tokens of {sidecar.dtype}")

    return run(work)
