"""The training run: from a configuration to a folder with record and checkpoints."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from megaswitch.checkpoint.choose import prune
from megaswitch.checkpoint.training import Progress, save_training
from megaswitch.config.documents import to_dict
from megaswitch.data.dataset import SpanCorruptionDataset, open_split
from megaswitch.data.spans import NUM_SENTINELS
from megaswitch.topology.start import Place, cpu_group, find_place, process_group
from megaswitch.train.board import Board
from megaswitch.train.check import check
from megaswitch.train.config import RunConfig
from megaswitch.train.evaluate import Evaluation, evaluate
from megaswitch.train.resume import checkpoint_root, find_start, resume
from megaswitch.train.run_folder import Metrics, open_folder
from megaswitch.train.signals import StopRequest, stop_on_signals
from megaswitch.train.speed import Clock, Speed, clock_text, measured_peak
from megaswitch.train.step import StepResult, train_step
from megaswitch.train.system import System, build, compute_dtype
from megaswitch.utils.errors import EXIT_PREEMPTED, CannotWriteError, MissingInputError
from megaswitch.utils.logging import setup
from megaswitch.utils.problem import refuse

log = logging.getLogger(__name__)


def open_data(config: RunConfig, split: str) -> SpanCorruptionDataset:
    """One split of the run's corpora; training is endless, validation passes once."""
    if not config.data.train and not (split == "valid" and config.data.valid):
        raise MissingInputError("data.train is not set; give the prefix of a corpus that data_prep/preprocess.py wrote")
    return open_split(
        config.data,
        "train" if split == "train" else "valid",
        encoder_length=config.model.encoder_length,
        decoder_length=config.model.decoder_length,
        vocab_size=config.model.vocab_size,
        seed=config.train.seed,
        repeat=split == "train",
    )


def lowest_sentinel(source: SpanCorruptionDataset) -> int:
    """The id from which on targets are sentinels."""
    return source.plan.first_sentinel + 1 - NUM_SENTINELS


def wants_validation(config: RunConfig) -> bool:
    """Whether there are validation documents."""
    weights = [w.strip() for w in config.data.split.split(",")]
    return bool(config.data.valid) or (len(weights) > 1 and float(weights[1]) > 0)


@dataclass
class _Run:
    """What the loop holds on to; `metrics` and `board` only on the first rank."""

    system: System
    train: SpanCorruptionDataset
    valid: SpanCorruptionDataset | None
    group: dist.ProcessGroup | None
    clock: Clock
    metrics: Metrics | None
    board: Board | None


def train(config: RunConfig, place: Place | None = None) -> int:
    """Train until `train.steps` (or `train.stop_after`, or a signal); returns the process's exit code.

    Raises UserError (or a subclass) with what to do when the configuration, the data or a checkpoint cannot be
    used; everything that can be checked is checked before any process group starts.
    """
    place = place or find_place(config.run.device)
    setup(place.rank, place.world)
    refuse(check(config, place.world))
    source = open_data(config, "train")
    valid = open_data(config, "valid") if wants_validation(config) else None
    set_threads(config, place)
    with process_group(place, config.run.timeout), stop_on_signals() as stop:
        group = cpu_group(place, config.run.timeout)
        start = find_start(config, group)
        system = build(config, place, first_sentinel=lowest_sentinel(source), initialise=start is None)
        progress = Progress(0, 0) if start is None else resume(system, start, source.fingerprint)
        run = _open(config, system, source, valid, group, progress)
        try:
            return _loop(run, progress, stop)
        finally:
            for sink in (run.metrics, run.board):
                if sink is not None:
                    sink.close()


def set_threads(config: RunConfig, place: Place) -> None:
    """Divide the cores over this machine's processes, unless told otherwise."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(config.run.threads or max(1, cores // place.local_world))


def _open(
    config: RunConfig,
    system: System,
    source: SpanCorruptionDataset,
    valid: SpanCorruptionDataset | None,
    group: dist.ProcessGroup | None,
    progress: Progress,
) -> _Run:
    """Folder, record and clock."""
    first = system.topology.rank == 0
    peak = measured_peak(system.topology, compute_dtype(config, system.topology.device))
    metrics = board = None
    if first:
        folder = open_folder(config)
        metrics = Metrics(folder, progress.step)
        board = Board(folder / "tb", progress.step) if config.log.tensorboard else None
        _announce(system, peak, folder)
    return _Run(system, source, valid, group, Clock(config, peak), metrics, board)


def _announce(system: System, peak: float, folder: Path) -> None:
    config, grid = system.config, system.topology.grid
    parameters = sum(entry.size for entry in system.buckets.specs.values())
    log.info(
        "world %d = pp %d x dp %d x tp %d (experts: edp %d x ep %d x etp %d), %d micro-batches of %d sequences",
        *(grid.world, grid.pp, grid.dp, grid.tp, grid.edp, grid.ep, grid.etp),
        *(system.num_microbatches, config.train.micro_batch),
    )
    log.info("%d parameters in this rank's stages; peak %.0f GFLOP/s; record in %s", parameters, peak / 1e9, folder)


def _loop(run: _Run, progress: Progress, stop: StopRequest) -> int:
    config = run.system.config
    end = min(config.train.steps, config.train.stop_after or config.train.steps)
    if progress.step >= end:
        log.info("nothing left to do: step %d of %d is done", progress.step, end)
    while progress.step < end:
        result = train_step(run.system, run.train, progress.step, progress.samples, stop=stop.asked)
        progress = Progress(progress.step + 1, progress.samples + config.train.global_batch)
        speed = run.clock.lap(config.train.steps - progress.step)
        stopping = result.record.stops > 0
        last = stopping or progress.step == end
        evaluation = _evaluate(run, progress.step, last=progress.step == config.train.steps)
        _tell(run, progress, result, evaluation, speed)
        if last or _due(progress.step, config.checkpoint.every):
            _save(run, progress, must=last)
        run.clock.skip()  # evaluation, records and checkpoints are no part of a step's speed
        if stopping:
            log.warning("stopped by a signal after step %d; the same command goes on from here", progress.step)
            return EXIT_PREEMPTED
    return 0


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _evaluate(run: _Run, step: int, *, last: bool) -> Evaluation | None:
    if run.valid is None or not (last or _due(step, run.system.config.eval.every)):
        return None
    evaluation = evaluate(run.system, run.valid)
    log.info("step %d: validation nll %.4f over %d samples", step, evaluation.nll, evaluation.samples)
    return evaluation


def _tell(
    run: _Run, progress: Progress, result: StepResult, evaluation: Evaluation | None, speed: Speed
) -> None:
    """Write the step's line, its events and, now and then, the progress line."""
    if run.metrics is None:
        return
    config, step = run.system.config, progress.step
    line = _metrics_line(config, progress, result, speed.tokens_per_s)
    if evaluation is not None:
        line |= {"valid_nll": evaluation.nll, "valid_content_nll": evaluation.content_nll}
    run.metrics.write(line)
    if _due(step, config.log.every) or step == 1:
        log.info(
            "step %d/%d  loss %.4f  nll %.4f  aux %.4f  dropped %.1f%%  norm %.3f  "
            "%.0f tokens/s  %.0f%% of peak  %s left",
            *(step, config.train.steps, result.loss, result.record.mean_nll, line["aux_loss"]),
            *(100 * result.record.dropped_share, result.grad_norm, speed.tokens_per_s),
            *(100 * speed.share_of_peak, clock_text(speed.seconds_left)),
        )
    _show(run, step, result, line)


def _metrics_line(
    config: RunConfig, progress: Progress, result: StepResult, tokens_per_s: float
) -> dict[str, float | int]:
    """loss = nll + z_loss + aux_loss + router_z_loss, each with its coefficient."""
    record = result.record
    return {
        "step": progress.step,
        "samples": progress.samples,
        "loss": result.loss,
        "nll": record.mean_nll,
        "aux_loss": config.model.aux_loss_coef * record.aux,
        "z_loss": record.z / max(record.targets, 1.0),
        "router_z_loss": config.model.router_z_loss_coef * record.router_z,
        "dropped": record.dropped_share,
        "grad_norm": result.grad_norm,
        "lr": result.lr,
        "tokens_per_s": tokens_per_s,
    }


def _show(run: _Run, step: int, result: StepResult, line: dict[str, float | int]) -> None:
    board, config = run.board, run.system.config.log
    if board is None:
        return
    if "valid_nll" in line:
        board.scalars(step, {f"valid/{k.removeprefix('valid_')}": line[k] for k in ("valid_nll", "valid_content_nll")})
    if _due(step, config.every) or step == 1:
        board.scalars(step, {f"train/{k}": v for k, v in line.items() if not k.startswith(("valid", "step"))})
        board.layers(step, result.record)
    if _due(step, config.images_every) or step == 1:
        board.picture(step, result.record)


def _save(run: _Run, progress: Progress, *, must: bool) -> None:
    """Save; a failure in the middle of a run is a warning, at its end an error."""
    config = run.system.config
    root, state = checkpoint_root(config), to_dict(config)
    try:
        path = save_training(
            root, progress, run.system.buckets, run.system.optimizer, state, run.train.fingerprint, run.group
        )
    except CannotWriteError as error:
        if must:
            raise
        log.error("checkpoint of step %d failed, training goes on: %s", progress.step, error)
        return
    if run.system.topology.rank == 0:
        prune(root, config.checkpoint.keep)
        log.info("saved %s", path)
