"""Preprocessing as whole commands, beside sentencepiece alone in as many processes, and beside Megatron-LM's."""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from megaswitch.data.prep.command import positive

HELP = "tokens a second of data_prep/preprocess.py, of raw sentencepiece, and of Megatron-LM's preprocess_data.py"
_BATCH = 1 << 20
_ROOT = Path(__file__).parents[2]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--input", required=True, metavar="F.jsonl")
    parser.add_argument("--tokenizer", required=True, metavar="M.model")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--repeats", type=positive, default=5, metavar="R", help="rounds, in which all run in turn")
    parser.add_argument(
        "--megatron", default=os.environ.get("MEGATRON_DIR", ""), metavar="DIR", help="a checkout (MEGATRON_DIR)"
    )
    parser.add_argument("--megatron-python", default=sys.executable, metavar="PY", help="what runs it")


@dataclass(frozen=True)
class Taken:
    """Seconds by the clock, and seconds of processors, which other work on the machine changes less."""

    wall: float
    cpu: float


def measure(options: argparse.Namespace) -> None:
    """Runs all in turn, `repeats` times, and prints medians."""
    shares = _shares(options.input, options.workers)
    size = sum(len(text.encode()) for share in shares for batch in share for text in batch)
    folder = tempfile.mkdtemp(prefix="bench-", dir=Path(options.input).absolute().parent)
    try:
        tokens = _tokens(options, folder)
        contenders: dict[str, Callable[[], Taken]] = {
            "sentencepiece, lists": lambda: _raw(shares, options.tokenizer, "int"),
            "sentencepiece, arrays": lambda: _raw(shares, options.tokenizer, "numpy"),
            "preprocess.py": lambda: _timed(_command(options, folder)),
            "preprocess.py --help": lambda: _timed([sys.executable, "data_prep/preprocess.py", "--help"]),
        }
        if options.megatron:
            contenders["Megatron-LM"] = lambda: _timed(_megatron(options, folder), options.megatron)
        taken: dict[str, list[Taken]] = {name: [] for name in contenders}
        for _ in range(options.repeats):
            for name, contender in contenders.items():
                taken[name].append(contender())
        print(f"{tokens / 1e6:.1f} M tokens, {size / 1e6:.1f} MB of text, {options.workers} processes, medians")
        _tell(taken, tokens, size)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _shares(path: str, workers: int) -> list[list[list[str]]]:
    """The documents in batches of about a MiB, dealt to the processes."""
    batches: list[list[str]] = [[]]
    room = _BATCH
    with open(path, encoding="utf-8") as file:
        for line in file:
            text = json.loads(line)["text"]
            if room <= 0:
                batches.append([])
                room = _BATCH
            batches[-1].append(text)
            room -= len(text)
    return [batches[number::workers] for number in range(workers)]


def _raw(shares: list[list[list[str]]], model: str, kind: str) -> Taken:
    """From when all processes stand ready with their texts to when the last one has encoded them."""
    context = multiprocessing.get_context("fork")
    barrier, spent = context.Barrier(len(shares) + 1), context.SimpleQueue()

    def encode(share: list[list[str]]) -> None:
        processor = sentencepiece.SentencePieceProcessor(model_file=model)
        barrier.wait()
        begin = time.process_time()
        for batch in share:
            processor.encode(batch, out_type=int if kind == "int" else kind, num_threads=1)
        spent.put(time.process_time() - begin)

    crew = [context.Process(target=encode, args=(share,)) for share in shares]
    for process in crew:
        process.start()
    barrier.wait()
    begin = time.perf_counter()
    for process in crew:
        process.join()
    return Taken(time.perf_counter() - begin, sum(spent.get() for _ in crew))


def _command(options: argparse.Namespace, folder: str) -> list[str]:
    paths = ["--input", os.path.abspath(options.input), "--tokenizer", os.path.abspath(options.tokenizer)]
    return [
        *[sys.executable, "data_prep/preprocess.py", *paths, "--output", f"{folder}/ours"],
        *["--workers", str(options.workers)],
    ]


def _megatron(options: argparse.Namespace, folder: str) -> list[str]:
    script = f"{options.megatron}/tools/preprocess_data.py"
    return [
        *[options.megatron_python, script, "--input", os.path.abspath(options.input)],
        *["--output-prefix", f"{folder}/theirs", "--tokenizer-type", "SentencePieceTokenizer"],
        *["--tokenizer-model", os.path.abspath(options.tokenizer), "--workers", str(options.workers)],
    ]


def _timed(command: list[str], path: str = "") -> Taken:
    environment = {**os.environ, "PYTHONPATH": path} if path else None
    before, begin = _children(), time.perf_counter()
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - begin
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return Taken(wall, _children() - before)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _tokens(options: argparse.Namespace, folder: str) -> int:
    """Tokens of the input; this first run also warms what is kept in memory of the files."""
    _timed(_command(options, folder))
    return int(json.loads(Path(f"{folder}/ours.json").read_text())["tokens"])


def _tell(taken: dict[str, list[Taken]], tokens: int, size: int) -> None:
    for name, found in taken.items():
        wall, cpu = (statistics.median(getattr(one, what) for one in found) for what in ("wall", "cpu"))
        least = min(one.wall for one in found)
        rate = f"{tokens / wall / 1e6:6.2f} M tokens/s {size / wall / 1e6:6.1f} MB/s"
        print(f"{name:24s} {wall:7.2f} s (least {least:.2f}), {cpu:7.2f} s of processors, {rate}")
    starts = taken["preprocess.py --help"]
    start = Taken(*(statistics.median(getattr(one, what) for one in starts) for what in ("wall", "cpu")))
    taken["preprocess.py without its start"] = [
        Taken(one.wall - start.wall, one.cpu - start.cpu) for one in taken["preprocess.py"]
    ]
    for name in ("preprocess.py", "preprocess.py without its start", "Megatron-LM"):
        for raw in ("sentencepiece, lists", "sentencepiece, arrays") if name in taken else ():
            pairs = list(zip(taken[raw], taken[name], strict=True))
            wall, cpu = (statistics.median(getattr(a, w) / getattr(b, w) for a, b in pairs) for w in ("wall", "cpu"))
            print(f"{name} has {wall:.1%} of the rate of {raw}; by processors' time {cpu:.1%}")
