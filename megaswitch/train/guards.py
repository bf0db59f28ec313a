"""What is looked at after every step: numbers, routers, replicas, paces, memory."""

import logging
import time
from pathlib import Path

from megaswitch.checkpoint.saver import Saver
from megaswitch.checkpoint.training import Progress
from megaswitch.model.record import StepRecord
from megaswitch.train.finite import Skips, weights_are_finite
from megaswitch.train.memory import Memory
from megaswitch.train.pace import tell_stragglers
from megaswitch.train.replicas import refuse_differing_replicas
from megaswitch.train.reporter import due
from megaswitch.train.spikes import Spikes
from megaswitch.train.step import StepResult
from megaswitch.train.system import System
from megaswitch.train.watchdog import Watchdog
from megaswitch.utils.errors import DivergedError

log = logging.getLogger(__name__)


class Routers:
    """Tells when a layer's router sends nearly all tokens to one expert, once until it has come back."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._collapsed: set[str] = set()

    def look(self, step: int, record: StepRecord) -> None:
        """Every rank has the same figures; logging is the first one's."""
        for name, layer in record.layers.items():
            total, most = sum(layer.load), max(layer.load, default=0.0)
            if len(layer.load) > 1 and total > 0 and most > self._limit * total:
                if name not in self._collapsed:
                    expert = layer.load.index(most)
                    log.warning(
                        "step %d: the router of %s has collapsed: %.0f%% of the tokens want expert %d of %d, %.0f%% "
                        "are dropped; raise model.aux_loss_coef or lower optim.lr",
                        *(step, name, 100 * most / total, expert, len(layer.load)),
                        100 * layer.dropped / max(layer.routed, 1.0),
                    )
                self._collapsed.add(name)
            else:
                self._collapsed.discard(name)


class Grace:
    """Warns when a save takes longer than a run is given from a signal to its end."""

    def __init__(self, grace: float) -> None:
        self._grace, self._began = grace, 0.0

    def begun(self) -> None:
        """A save begins."""
        self._began = time.monotonic()

    def look(self, step: int, saver: Saver) -> None:
        """Whether one has ended."""
        if not self._began or saver.busy:
            return
        seconds, self._began = time.monotonic() - self._began, 0.0
        if self._grace and seconds > self._grace:
            log.warning(
                "step %d: the checkpoint took %.1f s, but a signal leaves %g s (guard.grace): a stopped run would be "
                "killed while it saves, and lose the steps since; ask for a longer grace, or save more often",
                *(step, seconds, self._grace),
            )


class Guards:
    """All of them, on every rank alike: some talk to the other ranks."""

    def __init__(self, system: System, folder: Path, watch: Watchdog) -> None:
        guard = system.config.guard
        self._system, self._guard, self._watch = system, guard, watch
        self.skips = Skips(system, folder)
        self.grace = Grace(guard.grace)
        self.memory = Memory(system.topology.device, guard.memory_share)
        self._routers = Routers(guard.router_share)
        self._losses = Spikes(guard.spike_factor, guard.spike_window)
        self._norms = Spikes(guard.spike_factor, guard.spike_window)
        self._rewinds = 0

    def look(self, result: StepResult, progress: Progress, first_sample: int) -> None:
        """After a step. DivergedError after too many that were not finite, PeerLostError when replicas differ."""
        step, topology = progress.step, self._system.topology
        self.skips.after(result, step, first_sample)
        if topology.rank == 0:
            self._routers.look(step, result.record)
        if due(step, self._guard.replicas_every):
            refuse_differing_replicas(self._system, step)
        if due(step, self._guard.stragglers_every) and topology.world.size > 1:
            samples = self._watch.take_samples()
            tell_stragglers(samples, topology.world, topology.device, self._guard.straggler_factor, step)
        if due(step, self._system.config.log.every):
            self.memory.look(step)

    def spiked(self, result: StepResult, step: int) -> bool:
        """Whether the loss stands out, so that the run should go back; DivergedError when it did so too often."""
        if result.skipped:
            return False
        if self._norms.is_spike(result.grad_norm) and self._system.topology.rank == 0:
            log.warning("step %d: the gradient norm %.4g stands out", step, result.grad_norm)
        if not self._losses.is_spike(result.loss):
            return False
        self._rewinds += 1
        if self._rewinds > self._guard.spike_rewinds:
            raise DivergedError(
                f"step {step}: the loss {result.loss:.4g} stands out after {self._guard.spike_rewinds} rewinds: lower "
                "optim.lr, or allow more by guard.spike_rewinds"
            )
        return True

    def may_save(self, step: int, *, last: bool) -> bool:
        """Whether the state is one to come back to; DivergedError when it is not, and the `last`. Compares replicas
        first, where that is asked for."""
        if self._guard.replicas_every:
            refuse_differing_replicas(self._system, step)
        if weights_are_finite(self._system):
            return True
        trouble = f"step {step}: weights are not finite, and no checkpoint is written of them"
        if last:
            raise DivergedError(f"{trouble}. Resume from an earlier one with a lower optim.lr or with optim.clip")
        if self._system.topology.rank == 0:
            log.error("%s", trouble)
        return False
