"""The training run: from a configuration to a folder with record and checkpoints."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from megaswitch.checkpoint.saver import Saver
from megaswitch.checkpoint.store import refuse_unwritable
from megaswitch.checkpoint.training import Progress, training_pieces, training_state
from megaswitch.config.documents import to_dict
from megaswitch.data.batch import Batch
from megaswitch.data.dataset import Dataset
from megaswitch.data.prefetch import Prefetcher
from megaswitch.topology.start import Place, cpu_group, find_place, process_group
from megaswitch.train.batches import micro_ranges
from megaswitch.train.check import check
from megaswitch.train.config import RunConfig
from megaswitch.train.corpora import lowest_sentinel, memory_for, open_training, open_validation
from megaswitch.train.evaluate import Evaluation, evaluate
from megaswitch.train.reporter import Reporter, due
from megaswitch.train.resume import checkpoint_root, find_start, resume
from megaswitch.train.run_folder import open_folder
from megaswitch.train.signals import StopRequest, stop_on_signals
from megaswitch.train.speed import Clock, measured_peak
from megaswitch.train.step import train_step
from megaswitch.train.system import System, build, compute_dtype
from megaswitch.utils.errors import EXIT_PREEMPTED
from megaswitch.utils.logging import setup
from megaswitch.utils.problem import refuse

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """What the loop holds on to; only the first rank reports."""

    system: System
    train: Dataset
    valid: dict[str, Dataset]
    saver: Saver
    clock: Clock
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
    set_threads(config, place)
    with process_group(place, config.run.timeout), stop_on_signals() as stop:
        group = cpu_group(place, config.run.timeout)
        start = find_start(config, group)
        system = build(config, place, first_sentinel=lowest_sentinel(source), initialise=start is None)
        progress = Progress(0, 0) if start is None else resume(system, start, source.fingerprint)
        saver = Saver(checkpoint_root(config), config.checkpoint, group, place.local_world)
        run = _open(config, system, source, valid, saver, progress)
        try:
            return _loop(run, progress, stop)
        finally:
            run.saver.close()
            if run.reporter is not None:
                run.reporter.close()


def set_threads(config: RunConfig, place: Place) -> None:
    """Divide the cores over this machine's processes, unless told otherwise."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(config.run.threads or max(1, cores // place.local_world))


def _open(
    config: RunConfig,
    system: System,
    source: Dataset,
    valid: dict[str, Dataset],
    saver: Saver,
    progress: Progress,
) -> _Run:
    """Folder, record and clock."""
    peak = measured_peak(system.topology, compute_dtype(config, system.topology.device))
    reporter = None
    if system.topology.rank == 0:
        folder = open_folder(config)
        refuse_unwritable(checkpoint_root(config))
        reporter = Reporter(config, folder, progress.step)
        _announce(system, peak)
    return _Run(system, source, valid, saver, Clock(config, peak), reporter)


def _announce(system: System, peak: float) -> None:
    config, grid = system.config, system.topology.grid
    log.info(
        "world %d = pp %d x dp %d x tp %d (experts: edp %d x ep %d x etp %d), %d micro-batches of %d sequences",
        *(grid.world, grid.pp, grid.dp, grid.tp, grid.edp, grid.ep, grid.etp),
        *(system.num_microbatches, config.train.micro_batch),
    )
    log.info("this machine multiplies at %.0f GFLOP/s; the record is in %s", peak / 1e9, config.run_dir)


def _loop(run: _Run, progress: Progress, stop: StopRequest) -> int:
    config = run.system.config
    end = min(config.train.steps, config.train.stop_after or config.train.steps)
    if progress.step >= end:
        log.info("nothing left to do: step %d of %d is done", progress.step, end)
        return 0
    run.clock.skip()
    with _ahead(run, progress, end) as batches:
        return _steps(run, progress, end, batches, stop)


def _ahead(run: _Run, progress: Progress, end: int) -> Prefetcher:
    """This rank's micro-batches of all steps to come, made a little before they are needed."""
    size = run.system.config.train.global_batch

    def plan(step: int) -> list[tuple[int, int]]:
        return micro_ranges(run.system, progress.samples + (step - progress.step) * size)

    return Prefetcher(run.train, plan, progress.step, end, make=memory_for(run.system.topology.device))


def _steps(run: _Run, progress: Progress, end: int, batches: Iterable[list[Batch]], stop: StopRequest) -> int:
    config = run.system.config
    for sequences in batches:
        result = train_step(run.system, sequences, progress.step, stop=stop.asked)
        progress = Progress(progress.step + 1, progress.samples + config.train.global_batch)
        speed = run.clock.lap(config.train.steps - progress.step)
        stopping = result.record.stops > 0
        evaluation = None if stopping else _evaluate(run, progress.step)
        if run.reporter is not None:
            run.reporter.tell(progress, result, evaluation, speed, max(run.train.epochs(progress.samples)))
        run.saver.poll()
        last = stopping or progress.step == end
        if last or due(progress.step, config.checkpoint.every):
            _save(run, progress, evaluation, last=last, hurry=stopping)
        if stopping:
            log.warning("stopped by a signal after step %d; the same command goes on from here", progress.step)
            return EXIT_PREEMPTED
        run.clock.skip()  # evaluation, records and checkpoints are no part of a step's speed
    return 0


def _evaluate(run: _Run, step: int) -> Evaluation | None:
    """Validation figures every so many steps and after the last one."""
    config = run.system.config
    if not run.valid or not (step == config.train.steps or due(step, config.eval.every)):
        return None
    evaluation = evaluate(run.system, run.valid)
    log.info("step %d: validation nll %.4f over %d samples", step, evaluation.nll, evaluation.samples)
    return evaluation


def _save(run: _Run, progress: Progress, evaluation: Evaluation | None, *, last: bool, hurry: bool) -> None:
    """Save beside the training; the last time wait for it, and let a failure end the run."""
    system = run.system
    pieces = training_pieces(system.buckets, system.optimizer)
    nll = None if evaluation is None else evaluation.nll
    state = training_state(progress, to_dict(system.config), run.train.fingerprint, nll)
    if last:
        run.saver.save_last(progress.step, pieces, state, hurry=hurry)
    else:
        run.saver.save(progress.step, pieces, state)
