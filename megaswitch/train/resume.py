"""Choosing the checkpoint a run starts from, and refusing one that belongs to another run."""

import logging
from pathlib import Path

import torch.distributed as dist

from megaswitch.checkpoint.choose import choose, committed
from megaswitch.checkpoint.format import step_of
from megaswitch.checkpoint.places import Place, place
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.training import Progress, differences, is_weights_only, progress_of, restore
from megaswitch.config.documents import from_dict, to_dict
from megaswitch.train.config import RunConfig
from megaswitch.train.system import System
from megaswitch.utils.errors import DataError, UserError

log = logging.getLogger(__name__)

# What may change between a checkpoint and the run that goes on from it without a word: how the work is laid out.
_FREE = (
    "layout.",
    "run.",
    "log.",
    "eval.",
    "checkpoint.",
    "guard.",
    "data.",
    "train.stop_after",
    "train.deterministic",
    "train.recompute",
    "optim.zero",
)
# Fields of the model that shape no tensor but are part of what is learned; a change is allowed and said.
_OF_TRAINING: tuple[str, ...] = (
    "model.preset",
    "model.dropout",
    "model.expert_dropout",
    "model.capacity_factor",
    "model.eval_capacity_factor",
    "model.min_capacity",
    "model.capacity_rounding",
    "model.group_sequences",
    "model.decoder_group_sequences",
    "model.jitter",
    "model.route_padding",
    "model.aux_loss_coef",
    "model.router_z_loss_coef",
    "model.z_loss",
    "model.init_scale",
    "model.init_rule",
    "model.router_init_std",
    "model.router_dtype",
)
# What else the weights alone leave open: a run that begins with them may route and load them in its own way.
_OPEN_TO_WEIGHTS = (
    "model.encoder_length",
    "model.decoder_length",
    "model.fixed_capacity",
    "model.aux_loss_reduction",
    "model.exploration",
    "model.router_",
    "model.second_",
)


def checkpoint_root(config: RunConfig) -> Place:
    """Where a run's checkpoints are."""
    return place(config.checkpoint.dir) if config.checkpoint.dir else Path(config.run_dir) / "checkpoints"


def find_start(config: RunConfig, group: "dist.ProcessGroup | None") -> Reader | None:
    """The checkpoint to start from, opened; None for a fresh start. The same on all ranks."""
    root, wanted = checkpoint_root(config), config.checkpoint.resume
    path = choose(root, wanted, group)
    reader = None if path is None else Reader(path, verify=False)
    _refuse_older_start(root, wanted, 0 if reader is None else reader.step)
    return reader


def _refuse_older_start(root: Place, wanted: str, step: int) -> None:
    """A run that was told to begin before checkpoints that are already there would mix with them."""
    newer = [path.name for path in committed(root) if wanted != "auto" and (step_of(path.name) or 0) > step]
    if newer:
        raise UserError(
            f"checkpoint.resume={wanted} would begin before {newer[0]}, which is in {root} already; "
            "choose another run.dir, or move these checkpoints away"
        )


def _check_config(config: RunConfig, reader: Reader) -> None:
    """Refuse a checkpoint of another model, optimizer or seed; tell of every other change that matters."""
    # keys that were added since it was saved had, in effect, their defaults
    saved = to_dict(from_dict(RunConfig, reader.state.get("config"), str(reader.path), complete=False))
    current, free = to_dict(config), _OF_TRAINING
    if is_weights_only(reader):
        saved, current = {"model": saved["model"]}, {"model": current["model"]}
        free = (*_OF_TRAINING, *_OPEN_TO_WEIGHTS)
    changed = list(differences(saved, current))
    matters = [c for c in changed if not c.startswith(_FREE)]
    allowed = [c for c in matters if c.startswith(free)]
    fatal = [
        c
        for c in matters
        if c not in allowed
        and c.startswith(("model.", "optim.name", "optim.min_dim", "optim.adafactor_rule", "train.seed"))
    ]
    if fatal:
        raise DataError(
            f"{reader.path} is a checkpoint of another model or run:\n"
            + "\n".join(f"  - {c}" for c in fatal)
            + "\nset these keys back, choose another run.dir, or start afresh with --checkpoint.resume=none"
        )
    for change in matters:
        log.warning("changed since the checkpoint: %s", change)


def resume(system: System, reader: Reader, fingerprint: str) -> Progress:
    """Bring the system to where the checkpoint's run stood; refuses other models and other data.

    From a checkpoint of weights alone a run begins: step 0, fresh optimizer, any data.
    """
    config = system.config
    _check_config(config, reader)
    if is_weights_only(reader):
        restore(reader, system.buckets, None)
        log.info("begins with the weights of %s and a fresh optimizer", reader.path)
        return Progress(0, 0)
    if reader.state.get("data") != fingerprint:
        message = f"{reader.path} was trained on other data than data.train names now"
        if config.checkpoint.data_mismatch == "refuse":
            raise UserError(f"{message}; name the same corpora, or accept with --checkpoint.data_mismatch=accept")
        log.warning("%s; accepted", message)
    restore(reader, system.buckets, system.optimizer)
    progress = progress_of(reader)
    log.info("resumed from %s: step %d, %d samples", reader.path, progress.step, progress.samples)
    return progress


def restore_weights(system: System, reader: Reader) -> Progress:
    """Only the weights, for evaluation."""
    _check_config(system.config, reader)
    restore(reader, system.buckets, None)
    return progress_of(reader)


def go_back(system: System, group: "dist.ProcessGroup | None") -> Progress | None:
    """Bring the system to the newest checkpoint of its own that verifies; None where there is none."""
    path = choose(checkpoint_root(system.config), "auto", group)
    if path is None:
        return None
    reader = Reader(path, verify=False)
    system.buckets.await_weights(system.buckets.params)
    restore(reader, system.buckets, system.optimizer)
    return progress_of(reader)
