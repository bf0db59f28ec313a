"""The loader as training uses it: from a corpus on disk through the prefetcher, cold and warm, for each objective."""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from megaswitch.data.config import DataConfig
from megaswitch.data.layout import bin_path, dtype_for
from megaswitch.data.opening import open_split
from megaswitch.data.prefetch import Prefetcher
from megaswitch.data.prep.command import positive
from megaswitch.data.sidecar import TokenizerFacts
from megaswitch.data.writer import IndexedWriter

HELP = "samples a second of the loader, from a cold and from a warm page cache"
_VOCABULARY, _PIECES = 32_100, 32_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--tokens", type=positive, default=400_000_000, metavar="N", help="of the corpus that is made")
    parser.add_argument("--folder", default=None, metavar="DIR", help="where it is made (the system's temporary one)")
    parser.add_argument("--batch", type=positive, default=256, metavar="N", help="samples a step")
    parser.add_argument("--micro-batch", type=positive, default=16, metavar="N")
    parser.add_argument("--steps", type=positive, default=200, metavar="N")
    parser.add_argument("--threads", type=positive, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--step-rate", type=float, default=0.0, metavar="X", help="samples/s that training uses")


def measure(options: argparse.Namespace) -> None:
    """Makes a corpus and prints rates; the first pass begins with nothing of it in memory."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        prefix = _corpus(Path(folder) / "corpus", options.tokens)
        for threads in options.threads:
            _drop(bin_path(prefix))
            for name in ("cold", "warm"):
                _report(f"span corruption, {name}", prefix, options, threads)
        for objective in ("prefix_lm", "iid_denoising", "ul2"):
            _report(objective, prefix, options, options.threads[-1], objective=objective)
        _report("packed rows", prefix, options, options.threads[-1], packing=True)


def _corpus(prefix: Path, tokens: int) -> str:
    rng, written = np.random.default_rng(0), 0
    with IndexedWriter(str(prefix), dtype_for(_VOCABULARY)) as writer:
        while written < tokens:
            lengths = rng.integers(20, 1000, 4096)
            writer.add_documents(rng.integers(3, _PIECES, lengths.sum(), dtype=np.uint16), lengths)
            written += int(lengths.sum())
        writer.finish(TokenizerFacts("f" * 32, _PIECES))
    return str(prefix)


def _drop(path: Path) -> None:
    """Asks the system to forget the file's pages; it keeps those that are mapped, so nothing may have it open."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def _report(
    name: str, prefix: str, options: argparse.Namespace, threads: int, objective: str = "span_corruption", **data: bool
) -> None:
    config = DataConfig(train=prefix, split="1,0,0", threads=threads, **data)
    started = time.perf_counter()
    model = {"encoder_length": 512, "decoder_length": 114, "vocab_size": 32_128}
    dataset = open_split(config, "train", seed=0, objective=objective, **model)
    dataset.batch(0, options.micro_batch)
    opened = time.perf_counter() - started

    def plan(step: int) -> list[tuple[int, int]]:
        first = step * options.batch
        return [(at, options.micro_batch) for at in range(first, first + options.batch, options.micro_batch)]

    real = places = 0
    started = time.perf_counter()
    with Prefetcher(dataset, plan, 0, options.steps) as steps:
        for batches in steps:
            real += int((batches[0].encoder_ids_BS != 0).sum())
            places += batches[0].encoder_ids_BS.size
    taken = time.perf_counter() - started
    rate = options.steps * options.batch / taken
    text = f"{name:24} {threads} thread{'s' * (threads > 1):1}  {rate:9.0f} samples/s  "
    text += f"{options.steps / taken:7.1f} steps/s of {options.batch}  {100 * real / places:3.0f}% of encoder real  "
    text += f"opened in {opened:.2f} s"
    print(text + (f"  {rate / options.step_rate:.0f} times training" if options.step_rate else ""), flush=True)
