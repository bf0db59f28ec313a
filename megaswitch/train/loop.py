"""The training run: from a configuration to a folder with record and checkpoints."""

import logging
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from megaswitch.checkpoint.saver import Saver
from megaswitch.checkpoint.store import refuse_unwritable
from megaswitch.checkpoint.training import Progress, training_pieces, training_state
from megaswitch.config.documents import to_dict
from megaswitch.data.batch import Batch
from megaswitch.data.dataset import Dataset
from megaswitch.data.prefetch import Prefetcher
from megaswitch.ops.registry import in_words
from megaswitch.topology.start import Place, cpu_group, find_place, process_group
from megaswitch.train.advice import advice
from megaswitch.train.alike import facts, on_first, refuse_unlike
from megaswitch.train.batches import micro_ranges
from megaswitch.train.check import check
from megaswitch.train.config import RunConfig
from megaswitch.train.corpora import lowest_sentinel, memory_for, open_training, open_validation
from megaswitch.train.determinism import deterministic
from megaswitch.train.evaluate import Evaluation, evaluate
from megaswitch.train.guards import Guards
from megaswitch.train.lock import locked
from megaswitch.train.peers import Peers, meet, naming_the_lost
from megaswitch.train.preflight import look
from megaswitch.train.reporter import Reporter, due
from megaswitch.train.resume import checkpoint_root, find_start, go_back, resume
from megaswitch.train.run_folder import open_folder
from megaswitch.train.signals import StopRequest, stop_on_signals
from megaswitch.train.speed import Clock, measured_peak
from megaswitch.train.step import train_step
from megaswitch.train.system import System, build, compute_dtype
from megaswitch.train.watchdog import Watchdog, hang_limit
from megaswitch.utils.errors import EXIT_PREEMPTED
from megaswitch.utils.logging import setup
from megaswitch.utils.malloc import keep_freed_memory
from megaswitch.utils.precision import multiplies
from megaswitch.utils.problem import refuse

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """What the loop holds on to; only the first rank reports."""

    system: System
    train: Dataset
    valid: dict[str, Dataset]
    group: dist.ProcessGroup | None
    saver: Saver
    clock: Clock
    watch: Watchdog
    guards: Guards
    reporter: Reporter | None


def train(config: RunConfig, place: Place | None = None) -> int:
    """Train until `train.steps` (or `train.stop_after`, or a signal); returns the process's exit code.

    Raises UserError (or a subclass) with what to do when the configuration, the data or a checkpoint cannot be
    used; everything that can be checked is checked before any process group starts.
    """
    place = place or find_place(config.run.device)
    setup(place.rank, place.world)
    refuse(check(config, place.world))
    source = open_training(config)
    valid = open_validation(config)
    set_up_processor(config, place)
    with ExitStack() as stack:
        stack.enter_context(process_group(place, config.run.timeout))
        stop = stack.enter_context(stop_on_signals())
        stack.enter_context(deterministic(config.train.deterministic))
        group = cpu_group(place, config.run.timeout)
        refuse_unlike(facts(config, source.fingerprint), group)
        stack.enter_context(locked(Path(config.run_dir), place.rank, group))
        peers = meet(place.rank, Path(config.run_dir), group)
        with naming_the_lost(peers):
            run, progress = _begin(stack, config, place, source, valid, group, peers)
            return _loop(run, progress, stop)


def set_up_processor(config: RunConfig, place: Place) -> None:
    """Divide the cores over this machine's processes, unless told otherwise, and keep memory for the next arrays."""
    if place.device.type == "cpu":
        keep_freed_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(config.run.threads or max(1, cores // place.local_world))


def _begin(
    stack: ExitStack,
    config: RunConfig,
    place: Place,
    source: Dataset,
    valid: dict[str, Dataset],
    group: dist.ProcessGroup | None,
    peers: Peers,
) -> tuple[_Run, Progress]:
    """Everything a run works with, brought to where it stood; what has to be closed is closed by the stack."""
    start = find_start(config, group)
    system = build(config, place, first_sentinel=lowest_sentinel(source), initialise=start is None)
    log.info("%s", in_words(system.ops))
    if not multiplies(compute_dtype(config, place.device), place.device):
        log.warning("this processor has no bfloat16 products (AVX512_BF16, AMX): train.dtype=float32 is faster on it")
    progress = Progress(0, 0) if start is None else resume(system, start, source.fingerprint)
    if start is not None and progress.skipped:
        log.info("of these steps %d were skipped", progress.skipped)
    peak = measured_peak(system.topology, compute_dtype(config, place.device))
    folder = on_first(place.rank, group, lambda: _open_folders(config))
    if config.run.preflight:
        look(system, source, checkpoint_root(config), group, progress)
    saver = Saver(checkpoint_root(config), config.checkpoint, group, place.local_world)
    stack.callback(saver.close)
    watch = Watchdog(peers, hang_limit(config.guard.hang, config.run.timeout))
    system.executor.beat = watch.beat
    guards = Guards(system, Path(config.run_dir), watch)
    reporter = None if folder is None else Reporter(config, folder, progress.step, guards.memory)
    if reporter is not None:
        stack.callback(reporter.close)
        _announce(system, peak)
    stack.enter_context(watch.watching())
    return _Run(system, source, valid, group, saver, Clock(config, peak), watch, guards, reporter), progress


def _open_folders(config: RunConfig) -> Path:
    folder = open_folder(config)
    refuse_unwritable(checkpoint_root(config))
    return folder


def _announce(system: System, peak: float) -> None:
    config, grid = system.config, system.topology.grid
    log.info(
        "world %d = pp %d x dp %d x tp %d (experts: edp %d x ep %d x etp %d), %d micro-batches of %d sequences",
        *(grid.world, grid.pp, grid.dp, grid.tp, grid.edp, grid.ep, grid.etp),
        *(system.num_microbatches, config.train.micro_batch),
    )
    log.info("this machine multiplies at %.0f GFLOP/s; the record is in %s", peak / 1e9, config.run_dir)
    if system.topology.device.type == "cuda":
        for line in advice(config):
            log.warning("%s", line)


def _loop(run: _Run, progress: Progress, stop: StopRequest) -> int:
    config = run.system.config
    end = min(config.train.steps, config.train.stop_after or config.train.steps)
    if progress.step >= end:
        log.info("nothing left to do: step %d of %d is done", progress.step, end)
        return 0
    while True:
        run.clock.skip()
        with _ahead(run, progress, end) as batches:
            outcome = _steps(run, progress, end, batches, stop)
        if isinstance(outcome, int):
            return outcome
        progress = outcome


def _ahead(run: _Run, progress: Progress, end: int) -> Prefetcher:
    """This rank's micro-batches of all steps to come, made a little before they are needed."""
    size = run.system.config.train.global_batch

    def plan(step: int) -> list[tuple[int, int]]:
        return micro_ranges(run.system, progress.samples + (step - progress.step) * size)

    return Prefetcher(run.train, plan, progress.step, end, make=memory_for(run.system.topology.device))


def _steps(
    run: _Run, progress: Progress, end: int, batches: Iterable[list[Batch]], stop: StopRequest
) -> int | Progress:
    """Steps up to `end`, or up to a signal: an exit code; or to where the run goes back to after a spike."""
    config = run.system.config
    run.watch.enter("data", progress.step)
    for sequences in batches:
        run.watch.enter("step")
        updates, rerun = progress.step - progress.skipped, config.guard.rerun
        result = train_step(run.system, sequences, progress.step, updates=updates, stop=stop.is_asked, rerun=rerun)
        first_sample, progress = progress.samples, _after(progress, config.train.global_batch, result.skipped)
        speed = run.clock.lap(config.train.steps - progress.step)
        run.guards.look(result, progress, first_sample)
        stopping = result.record.stops > 0
        if not stopping and run.guards.spiked(result, progress.step) and (back := _go_back(run, progress)):
            return back
        evaluation = None if stopping else _evaluate(run, progress.step)
        if run.reporter is not None:
            run.reporter.tell(progress, result, evaluation, speed, max(run.train.epochs(progress.samples)))
        run.saver.poll()
        run.guards.grace.look(progress.step, run.saver)
        last = stopping or progress.step == end
        if last or due(progress.step, config.checkpoint.every):
            _save(run, progress, evaluation, last=last, hurry=stopping)
        if stopping:
            log.warning("stopped by a signal after step %d; the same command goes on from here", progress.step)
            return EXIT_PREEMPTED
        run.clock.skip()  # evaluation, records and checkpoints are no part of a step's speed
        run.watch.enter("data", progress.step)
    return 0


def _after(progress: Progress, size: int, skipped: bool) -> Progress:
    """A skipped step is a step: its batch is consumed, and only the optimizer does not count it."""
    return Progress(progress.step + 1, progress.samples + size, progress.skipped + skipped)


def _go_back(run: _Run, progress: Progress) -> Progress | None:
    """The newest checkpoint's state, to go on from with the samples that come now; None where there is none."""
    run.watch.enter("")
    run.saver.settle()
    back = go_back(run.system, run.group)
    if back is None:
        log.warning("step %d: the loss stands out, but there is no checkpoint to go back to", progress.step)
        return None
    log.warning(
        "step %d: the loss stands out; going back to step %d, past the samples %d to %d",
        *(progress.step, back.step, back.samples, progress.samples - 1),
    )
    if run.reporter is not None:
        run.reporter.close()
        run.reporter.go_on_from(back.step)
    return replace(back, samples=progress.samples)


def _evaluate(run: _Run, step: int) -> Evaluation | None:
    """Validation figures every so many steps and after the last one."""
    config = run.system.config
    if not run.valid or not (step == config.train.steps or due(step, config.eval.every)):
        return None
    run.watch.enter("evaluation")
    evaluation = evaluate(run.system, run.valid)
    log.info("step %d: validation nll %.4f over %d samples", step, evaluation.nll, evaluation.samples)
    return evaluation


def _save(run: _Run, progress: Progress, evaluation: Evaluation | None, *, last: bool, hurry: bool) -> None:
    """Save beside the training; the last time wait for it, and let a failure end the run."""
    system = run.system
    if not run.guards.may_save(progress.step, last=last):
        return
    run.watch.enter("")  # how long a disk may take is not ours to say
    pieces = training_pieces(system.buckets, system.optimizer)
    nll = None if evaluation is None else evaluation.nll
    state = training_state(progress, to_dict(system.config), run.train.fingerprint, nll)
    if last:
        run.saver.save_last(progress.step, pieces, state, hurry=hurry)
    else:
        run.guards.grace.begun()
        run.saver.save(progress.step, pieces, state)
