"""The sample index of an epoch and the schedule of a blend, beside Megatron-LM's helpers."""

import argparse
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from megaswitch.data.blend import Blend
from megaswitch.data.index import epoch_order
from megaswitch.data.prep.command import positive

HELP = "samples a second of building an epoch's index and a blend's schedule, beside Megatron-LM's"
_LENGTH = 568
_MEAN_TOKENS = 540


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--documents", type=positive, nargs="+", default=[1_000_000, 10_000_000], metavar="N")
    parser.add_argument("--corpora", type=positive, nargs="+", default=[4, 100, 1000], metavar="K")
    parser.add_argument("--samples", type=positive, default=10_000_000, metavar="N", help="of the blends")
    parser.add_argument("--repeats", type=positive, default=3, metavar="R")
    parser.add_argument(
        "--megatron-helpers",
        default=os.environ.get("MEGATRON_HELPERS", ""),
        metavar="SO",
        help="helpers_cpp of a checkout, compiled by its Makefile (MEGATRON_HELPERS)",
    )


def measure(options: argparse.Namespace) -> None:
    """Prints the best of the repeats, which other work on the machine changes least."""
    theirs = _load(options.megatron_helpers) if options.megatron_helpers else None
    for count in options.documents:
        _index(count, options.repeats, theirs)
    for corpora in options.corpora:
        _blend(corpora, options.samples, options.repeats, theirs)


def _load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("helpers_cpp", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _best(work: Callable[[], object], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def _index(count: int, repeats: int, theirs: Any) -> None:
    """What an epoch costs before its first sample: order and sums here; document, sample and shuffle index there."""
    lengths = np.random.default_rng(0).integers(1, 2 * _MEAN_TOKENS, count)
    total = int(lengths.sum())
    samples = total // _LENGTH
    ours = _best(lambda: epoch_order(lengths, 5), repeats)
    print(f"{count} documents, {total} tokens, {samples} samples:")
    print(f"  ours            {ours:8.3f} s  {samples / ours / 1e6:8.1f} M samples/s")
    if theirs is None:
        return
    narrow = lengths.astype(np.int32)
    state = np.random.RandomState(1234)

    def whole() -> None:
        order = np.arange(count, dtype=np.int32)
        state.shuffle(order)
        theirs.build_sample_idx_int32(narrow, order, _LENGTH, 1, total, True, 0)
        state.shuffle(np.arange(samples, dtype=np.uint32))

    order = np.random.RandomState(1).permutation(count).astype(np.int32)
    helper = _best(lambda: theirs.build_sample_idx_int32(narrow, order, _LENGTH, 1, total, True, 0), repeats)
    both = _best(whole, repeats)
    rate = samples / both / 1e6
    print(f"  Megatron-LM     {both:8.3f} s  {rate:8.1f} M samples/s: ours {both / ours:.1f} times as fast")
    print(f"    helper alone  {helper:8.3f} s  {samples / helper / 1e6:8.1f} M samples/s")


def _blend(corpora: int, samples: int, repeats: int, theirs: Any) -> None:
    weights = np.random.default_rng(1).integers(1, (1 << 24) // corpora, corpora)
    step = 1 << 16

    def ours() -> None:
        blend = Blend(weights.tolist())
        for first in range(0, samples, step):
            blend.locate(first, min(step, samples - first))

    taken = _best(ours, repeats)
    print(f"blend of {corpora} corpora, {samples} samples:")
    print(f"  ours            {taken:8.3f} s  {samples / taken / 1e6:8.1f} M samples/s")
    if theirs is None:
        return
    corpus, within = np.zeros(samples, np.int16), np.zeros(samples, np.int64)
    shares = weights / weights.sum()
    few = min(samples, 1_000_000 if corpora >= 1000 else samples)
    other = _best(
        lambda: theirs.build_blending_indices(corpus, within, shares, corpora, few, False), repeats
    ) * (samples / few)
    rate = samples / other / 1e6
    print(f"  Megatron-LM     {other:8.3f} s  {rate:8.1f} M samples/s: ours {other / taken:.1f} times as fast")
