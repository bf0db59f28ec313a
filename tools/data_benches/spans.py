"""Span corruption alone: pieces of 568 tokens in memory, beside Python collators."""

import argparse
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from megaswitch.data.batch import Batch, empty_batch
from megaswitch.data.denoise import denoise_numpy, table
from megaswitch.data.native import native
from megaswitch.data.objectives import span_corruption
from megaswitch.data.prep.command import positive
from megaswitch.data.rng import derive_each
from megaswitch.data.spans import EOS

HELP = "samples a second of span corruption, beside Python collators"
Work = Callable[[], object]

_ENCODER, _DECODER, _VOCABULARY = 512, 114, 32_100


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--samples", type=positive, default=1024, metavar="N")
    parser.add_argument("--threads", type=positive, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--repeats", type=positive, default=7, metavar="R")
    parser.add_argument(
        "--collator", default="", metavar="F.py", help="a file with FlaxDataCollatorForT5MLM (transformers' T5 example)"
    )


def measure(options: argparse.Namespace) -> None:
    """Runs all in turn, again and again, and prints the best of each, which other work on the machine changes least."""
    rule = span_corruption(_ENCODER, _DECODER)
    pieces = np.random.default_rng(0).integers(3, 32_000, (options.samples, rule.length)).astype(np.uint16)
    keys = derive_each(0, np.arange(options.samples, dtype=np.uint64))
    few = min(options.samples, 256)
    contenders: dict[str, tuple[int, Work]] = {"numpy twin": (few, partial(_twin, rule, _rows(pieces, keys, few)))}
    if options.collator:
        examples = [{"input_ids": piece.astype(np.int64)} for piece in pieces[:few]]
        contenders["transformers' collator"] = (few, partial(_load(options.collator), examples))
    kept = empty_batch(0, options.samples, (_ENCODER, _DECODER), packed=False)
    for threads in options.threads:
        for where, batch in (("new", None), ("kept", kept)):
            name = f"ours, {threads} thread{'s' * (threads > 1)}, {where} memory"
            contenders[name] = (options.samples, partial(_compiled, rule, pieces, keys, threads, batch))
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.repeats):
        for name, (_, work) in contenders.items():
            taken[name].append(_seconds(work))
    rates = {name: count / min(taken[name]) for name, (count, _) in contenders.items()}
    slowest = rates.get("transformers' collator", rates["numpy twin"])
    for name, rate in rates.items():
        print(f"{name:28} {rate:10.0f} samples/s  {rate / slowest:7.1f} times")


def _rows(pieces: Any, keys: Any, count: int) -> list[tuple[Any, int]]:
    return list(zip(pieces[:count].astype(np.int64), keys[:count].tolist(), strict=True))


def _twin(rule: Any, rows: list[tuple[Any, int]]) -> None:
    for piece, key in rows:
        denoise_numpy(rule, piece, key, _VOCABULARY - 1)


def _compiled(rule: Any, pieces: Any, keys: Any, threads: int, kept: Batch | None) -> None:
    """Into new memory, whose pages the system clears first, or into memory that is used again, as a GPU's is."""
    count, length = pieces.shape
    batch = empty_batch(0, count, (_ENCODER, _DECODER), packed=False) if kept is None else kept
    compiled = native()
    assert compiled is not None, "the extension is not built"
    rows = compiled.Rows(batch.encoder_ids_BS, batch.targets_BT, batch.decoder_ids_BT, None, None)
    starts, zeros = np.arange(count) * length, np.zeros(count, np.int64)
    epochs = [(np.arange(count), starts + length)]
    rows.add_stream(
        *(np.arange(count), pieces.reshape(-1), starts, _VOCABULARY, epochs, zeros, starts, keys),
        *(table([rule]), zeros, _VOCABULARY - 1, EOS),
    )
    assert rows.make(threads) is None


class _Numbers:
    """All that the collator asks of a tokenizer."""

    vocab_size, eos_token_id, pad_token_id = 32_000, EOS, 0

    def __len__(self) -> int:
        return _VOCABULARY


def _load(path: str) -> Callable[[Any], Any]:
    """The collator, without a tokenizer of text."""
    spec = importlib.util.spec_from_file_location("collator", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Callable[[Any], Any] = module.FlaxDataCollatorForT5MLM(_Numbers(), 0.15, 3.0, _ENCODER, _DECODER, 0, 0)
    return made


def _seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
