"""A training state as a checkpoint: what is saved of it, and how it comes back in whatever layout."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from typing import Any

import torch
import torch.distributed as dist

from megaswitch.checkpoint.format import JSON, Piece
from megaswitch.checkpoint.places import Place
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.retention import VALIDATION_NLL
from megaswitch.checkpoint.store import save
from megaswitch.optim.buckets import Buckets
from megaswitch.optim.optimizer import Optimizer, StateTensor, master_state
from megaswitch.utils.errors import DataError


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done and samples consumed, which need not be proportional (a resumed run may have
    another global batch), and how many of the steps were skipped: their batches were consumed, but changed nothing."""

    step: int
    samples: int
    skipped: int = 0


def training_tensors(buckets: Buckets, optimizer: Optimizer | None) -> Iterator[StateTensor]:
    """What a checkpoint holds of this rank: masters, and with an optimizer its state."""
    return chain(master_state(buckets), () if optimizer is None else optimizer.state())


def training_pieces(buckets: Buckets, optimizer: Optimizer) -> list[Piece]:
    """What this rank saves of masters and optimizer state: views, not copies."""
    tensors = training_tensors(buckets, optimizer)
    return [Piece(t.name, t.global_shape, t.box, t.view.detach()) for t in tensors if t.primary]


def training_state(
    progress: Progress, config: Mapping[str, JSON], fingerprint: str, nll: float | None = None
) -> dict[str, JSON]:
    """What is saved beside the tensors; `nll` is the validation's at this very step, if there was one."""
    state: dict[str, JSON] = {"samples": progress.samples, "config": dict(config), "data": fingerprint}
    if progress.skipped:
        state["skipped"] = progress.skipped
    if nll is not None and isfinite(nll):
        state[VALIDATION_NLL] = nll
    return state


def save_training(
    root: Place,
    progress: Progress,
    buckets: Buckets,
    optimizer: Optimizer,
    config: Mapping[str, JSON],
    fingerprint: str,
    group: dist.ProcessGroup | None,
) -> Place:
    """Write masters, optimizer state, progress, configuration and data fingerprint; each rank its own part."""
    state = training_state(progress, config, fingerprint)
    return save(root, progress.step, training_pieces(buckets, optimizer), state, group)


def weights_only_state(config: Mapping[str, JSON]) -> dict[str, JSON]:
    """The state of a checkpoint at step 0 that no run wrote: it holds weights and the model's configuration, from
    which a run begins with a fresh optimizer, whatever its data."""
    return {"samples": 0, "config": dict(config), "data": "", "weights_only": True}


def is_weights_only(reader: Reader) -> bool:
    """Whether a checkpoint holds no optimizer state and belongs to no run."""
    return reader.state.get("weights_only") is True


def progress_of(reader: Reader) -> Progress:
    """Where the run stood that wrote the checkpoint."""
    samples, skipped = reader.state.get("samples"), reader.state.get("skipped", 0)
    if not (isinstance(samples, int) and isinstance(skipped, int)):
        raise DataError(f"{reader.path} does not say how many samples were consumed; it is no training checkpoint")
    return Progress(reader.step, samples, skipped)


@torch.no_grad()
def restore(reader: Reader, buckets: Buckets, optimizer: Optimizer | None) -> None:
    """Read what this rank holds, whatever layout wrote it, and bring the weights of all ranks up to date.

    Raises DataError when a tensor is missing or has another shape.
    """
    for tensor in training_tensors(buckets, optimizer):
        info = reader.tensors.get(tensor.name)
        if info is not None and info.shape != tensor.global_shape:
            raise DataError(
                f"{reader.path} holds {tensor.name} with shape {list(info.shape)}, this model wants "
                f"{list(tensor.global_shape)}: it is a checkpoint of another model"
            )
        reader.read_into(tensor.name, tensor.box, tensor.view)
    buckets.publish()


def differences(saved: Any, current: Any, prefix: str = "") -> Iterator[str]:
    """Keys of two configurations (nested dictionaries) whose values differ, as "key: saved, now"."""
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        for key in sorted({*saved, *current}):
            yield from differences(saved.get(key), current.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif saved != current:
        yield f"{prefix}: {saved}, now {current}"
