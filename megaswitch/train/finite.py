"""Steps whose loss or gradient is not finite: they are counted, it is said whose they are, and too many end the run."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import torch
from torch import Tensor

from megaswitch.comm.collectives import all_gather
from megaswitch.train.batches import micro_ranges
from megaswitch.train.step import StepResult
from megaswitch.train.system import System
from megaswitch.utils.errors import DivergedError
from megaswitch.utils.host import host_read

log = logging.getLogger(__name__)

FOLDER = "nonfinite"


def count_nonfinite(x: Tensor) -> int:
    """Elements that are infinite or no number."""
    return int(host_read("nonfinite", (~torch.isfinite(x)).sum().unsqueeze(0))[0])


def nonfinite_by_parameter(system: System) -> dict[str, dict[str, int]]:
    """By name, how many elements are not finite of this rank's weights, of the gradient of its own samples, and of the
    sum over ranks; only those that have some.

    Where a bucket is divided over the data axis the sum lies in this rank's segment, and the rest is still its own.
    Where it is not, all of it may be a sum.
    """
    found: dict[str, dict[str, int]] = {}
    for bucket in system.buckets.buckets:
        first, last = bucket.first, bucket.first + bucket.segment_size
        for entry in bucket.entries:
            start, stop = entry.start, entry.start + entry.box.size
            counts = {
                "weights": count_nonfinite(bucket.weights[start:stop]),
                "sum": count_nonfinite(bucket.grads[max(start, first) : max(min(stop, last), first)]),
            }
            counts["gradient"] = count_nonfinite(bucket.grads[start:stop]) - counts["sum"]
            if any(counts.values()):
                found[entry.spec.name] = counts
    return found


def _ranks_with(system: System, found: Mapping[str, Mapping[str, int]], what: str) -> list[int]:
    """Ranks that have such elements; a collective of all."""
    mine = float(any(counts[what] for counts in found.values()))
    flags = all_gather(torch.tensor([mine], device=system.topology.device), system.topology.world)
    return [rank for rank, flag in enumerate(host_read("nonfinite_ranks", flags)) if flag]


def weights_are_finite(system: System) -> bool:
    """Whether the masters of all ranks are; a collective of all. What is not is no state to go back to."""
    mine = float(all(count_nonfinite(bucket.master) == 0 for bucket in system.buckets.buckets))
    flags = all_gather(torch.tensor([mine], device=system.topology.device), system.topology.world)
    return all(host_read("finite_weights", flags))


class Skips:
    """Counts the steps in a row that were skipped, and ends the run when there are too many."""

    def __init__(self, system: System, folder: Path) -> None:
        self._system, self._folder = system, folder
        self.in_a_row = 0

    def after(self, result: StepResult, step: int, first_sample: int) -> None:
        """Called after every step (numbered from 1, over a global batch from `first_sample` on), on all ranks alike.

        DivergedError once `guard.nonfinite_limit` steps in a row were skipped; every rank that has something to tell
        has written it down then.
        """
        if result.retried and not result.skipped:
            log.warning("step %d was not finite, but was when it was computed again: a passing fault", step)
        if not result.skipped:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        found = nonfinite_by_parameter(self._system)
        where = self._where(found)
        limit = self._system.config.guard.nonfinite_limit
        if self._system.topology.rank == 0:
            log.warning(
                "step %d is skipped (%d in a row of at most %d): loss %s, gradient norm %s%s; %s",
                *(step, self.in_a_row, limit, result.loss, result.grad_norm),
                *(", the same when computed again" if result.retried else "", where),
            )
        if self.in_a_row >= limit:
            path = self._dump(result, step, first_sample, found)
            raise DivergedError(
                f"step {step} has loss {result.loss} and gradient norm {result.grad_norm}, as {self.in_a_row} steps in "
                f"a row; {where}; nothing was updated in them, details are in {path}. Resume from an earlier "
                "checkpoint with a lower optim.lr, clipping (optim.clip) or train.dtype=float32"
            )

    def _where(self, found: Mapping[str, Mapping[str, int]]) -> str:
        ranks = {what: _ranks_with(self._system, found, what) for what in ("weights", "gradient", "sum")}
        if ranks["weights"]:
            return f"weights are not finite on ranks {ranks['weights']}"
        if ranks["gradient"]:
            return f"gradients of ranks {ranks['gradient']} are not finite"
        return f"sums of gradients on ranks {ranks['sum']} are not finite" if ranks["sum"] else "only the loss is not"

    def _dump(self, result: StepResult, step: int, first_sample: int, found: Mapping[str, Any]) -> Path:
        system, record = self._system, result.record
        rank, folder = system.topology.rank, self._folder / FOLDER / f"step-{step:08d}"
        if not (found or rank == 0):
            return folder
        told = {
            "step": step,
            "rank": rank,
            "samples": [list(pair) for pair in micro_ranges(system, first_sample)],
            "loss": str(result.loss),
            "grad_norm": str(result.grad_norm),
            "parts": {key: str(getattr(record, key)) for key in ("nll", "z", "aux", "router_z", "targets")},
            "layers": {name: {"aux": str(v.aux), "z": str(v.z)} for name, v in record.layers.items()},
            "parameters": found,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            aside = folder / f"rank-{rank:05d}.json.tmp"
            aside.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2))
            os.replace(aside, folder / f"rank-{rank:05d}.json")
        except OSError as error:
            log.error("cannot write %s: %s", folder, error.strerror or error)
        return folder
