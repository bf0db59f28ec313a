"""Text to a corpus on disk. The inputs are cut into shards; each becomes a small corpus; these are joined in order.

The bytes of the corpus therefore depend neither on the number of workers nor on the machines. A run that was stopped,
however hard, goes on from the shards that are whole. Documents are stored without EOS.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.layout import dtype_for, idx_path
from megaswitch.data.prep.command import progress, say
from megaswitch.data.prep.merge import append
from megaswitch.data.prep.plan import Plan, tokenizer_of
from megaswitch.data.prep.report import Summary
from megaswitch.data.prep.shard import report_of, write_shard
from megaswitch.data.prep.workers import run_here
from megaswitch.data.sidecar import Sidecar
from megaswitch.data.writer import IndexedWriter, remove_stale, translated
from megaswitch.utils.errors import CannotWriteError, DataError

Executor = Callable[[Plan, list[int]], Iterator[int]]
_PATIENCE = 2.0  # seconds for the workers of a run that was killed just now to be gone


def local(workers: int) -> Executor:
    """Processes of this machine; where shards are fewer than these, threads within them."""

    def execute(plan: Plan, numbers: list[int]) -> Iterator[int]:
        crew = 1 if plan.reads_stdin else workers  # what comes on a pipe comes to this process
        threads = max(1, workers // max(min(crew, len(numbers)), 1))
        return run_here(lambda number: write_shard(plan, number, threads), numbers, crew)

    return execute


def preprocess(plan: Plan, execute: Executor) -> tuple[Sidecar, Summary]:
    """Writes the corpus of a plan; what was at its place stays until the new one is whole.

    An error leaves the shards that are done for the next run. DataError for bad records that are refused, damaged
    files, and inputs without documents; CannotWriteError where another run is at work on the same output.
    """
    with at_work(plan):
        run_shards(plan, execute, pending(plan))
        return join(plan)


def pending(plan: Plan) -> list[int]:
    """Shards that are not done."""
    return [shard.number for shard in plan.shards if report_of(plan, shard.number) is None]


def run_shards(plan: Plan, execute: Executor, numbers: list[int]) -> None:
    """Runs the given shards and shows progress by their size."""
    done = len(plan.shards) - len(numbers)
    if done:
        say(f"going on: {done} of {len(plan.shards)} shards are done already")
    with progress("encoding", sum(shard.size for shard in plan.shards)) as advance:
        advance(sum(shard.size for shard in plan.shards) - sum(plan.shards[number].size for number in numbers))
        for number in execute(plan, numbers):
            advance(plan.shards[number].size)


def join(plan: Plan) -> tuple[Sidecar, Summary]:
    """Joins the shards of a plan, all of which must be done, and removes them."""
    summary = Summary()
    for shard in plan.shards:
        report = report_of(plan, shard.number)
        if report is None:
            raise DataError(f"{plan.prefix(shard.number)} is not done: run the shards of {plan.folder} first")
        summary.add(shard.slices, report)
    if summary.documents == 0:
        summary.say()
        shutil.rmtree(plan.folder, ignore_errors=True)
        raise DataError(f"{', '.join(_names(plan))}: no documents in the input, nothing was written")
    tokenizer = tokenizer_of(plan.encoding.model)
    with IndexedWriter(plan.output, dtype_for(tokenizer.vocab_size)) as writer:
        with progress("joining", len(plan.shards)) as advance:
            for shard in plan.shards:
                _append(plan, shard.number, writer)
                advance(1)
        sidecar = writer.finish(tokenizer.facts, _names(plan), _options(plan, summary))
    shutil.rmtree(plan.folder, ignore_errors=True)
    return sidecar, summary


def _append(plan: Plan, number: int, writer: IndexedWriter) -> None:
    try:
        append(IndexedCorpus(plan.prefix(number)), writer)
    except DataError as error:
        idx_path(plan.prefix(number)).unlink(missing_ok=True)
        raise DataError(f"{error}\nthe shard was removed: the same command makes it again and goes on") from None


def _names(plan: Plan) -> list[str]:
    return list(dict.fromkeys(part.source.name for shard in plan.shards for part in shard.slices))


def _options(plan: Plan, summary: Summary) -> dict[str, object]:
    """What made the corpus, without names of machines and folders, so that equal corpora have equal sidecars."""
    reading = plan.reading
    return {
        "key": reading.key,
        "unit": reading.unit,
        "where": list(reading.where),
        "on_bad": reading.on_bad,
        "sentences": plan.encoding.sentences,
        "left_out_or_repaired": dict(sorted((+summary.kinds).items())),
    }


@contextmanager
def at_work(plan: Plan, keep: bool = False) -> Iterator[None]:
    """Holds the plan's folder for this run alone, and removes it where nothing in it is worth keeping, unless `keep`
    says that others come after."""
    with translated(plan.folder):
        plan.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(plan.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(handle, plan)
        remove_stale(plan.folder)
        yield
    finally:
        if not keep and not any(plan.folder.glob("part-*.idx")):
            shutil.rmtree(plan.folder, ignore_errors=True)
        os.close(handle)


def _take(handle: int, plan: Plan) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() > until:
            raise CannotWriteError(f"another run is at work on {plan.output}: wait for it, or choose another --output")
        time.sleep(0.05)
