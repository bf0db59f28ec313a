"""Saves a run's checkpoints while its training goes on: one at a time, in a thread that works with files alone."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch.distributed as dist

from megaswitch.checkpoint.config import CheckpointConfig
from megaswitch.checkpoint.folders import folder_at
from megaswitch.checkpoint.format import JSON, Piece, shard_name, step_name
from megaswitch.checkpoint.places import Place
from megaswitch.checkpoint.reader import check
from megaswitch.checkpoint.retention import prune, removable
from megaswitch.checkpoint.shard import file_hash
from megaswitch.checkpoint.staging import Staging
from megaswitch.checkpoint.store import save
from megaswitch.comm.messages import broadcast_bytes, gather_bytes
from megaswitch.utils.errors import CannotWriteError, DataError

log = logging.getLogger(__name__)

_END_SECONDS = 10.0
"""How long a run that ends with an error waits for a save that is under way."""


@dataclass
class _Task:
    """A save under way, or what came of it."""

    step: int
    work: Callable[[], Place]
    began: float = field(default_factory=time.monotonic)
    path: Place | None = None
    trouble: BaseException | None = None

    def run(self) -> None:
        try:
            self.path = self.work()
        except BaseException as error:  # told by whoever asks next
            self.trouble = error


class Saver:
    """Writes checkpoints below a root and removes old ones.

    Every rank has one, with a CPU `group` of its own (None for one process) that nothing else ever uses: its
    thread talks over it while the others train. The ranks need not agree on whether they save in a thread.
    """

    def __init__(
        self, root: Place, config: CheckpointConfig, group: dist.ProcessGroup | None, local_world: int = 1
    ) -> None:
        self._root, self._config, self._group = root, config, group
        self._rank = 0 if group is None else dist.get_rank(group)
        self._world = 1 if group is None else dist.get_world_size(group)
        self._staging = Staging(local_world)
        self._thread: threading.Thread | None = None
        self._task: _Task | None = None

    def save(self, step: int, pieces: Sequence[Piece], state: Mapping[str, JSON]) -> None:
        """Save the state as it stands, and return while it is being written, when there is room for a copy of it.

        Waits for a save that is still under way. A failure is told when it is known, and nothing more: training
        goes on.
        """
        if self._rank == 0 and self.busy:
            log.warning("step %d: training waits for the checkpoint before; raise checkpoint.every", step)
        self.settle()
        began = time.monotonic()
        staged = self._staging.take(pieces) if self._config.asynchronous else None
        if staged is None:
            if self._config.asynchronous:
                log.warning("step %d: no memory for a copy of the state: training waits for the checkpoint", step)
            self._task = _Task(step, lambda: self._work(step, pieces, state, clean=True))
            self._task.run()
            self._tell()
            return
        self._task = _Task(step, lambda: self._work(step, staged, state, clean=True))
        self._thread = threading.Thread(target=self._task.run, name=f"checkpoint-{step}", daemon=True)
        self._thread.start()
        if self._rank == 0:
            log.info("step %d: saving; training paused for %.3f s", step, time.monotonic() - began)

    def save_last(self, step: int, pieces: Sequence[Piece], state: Mapping[str, JSON], *, hurry: bool = False) -> None:
        """Save the state and wait for it; in a `hurry` no old checkpoint is removed, which takes a while.

        Raises CannotWriteError.
        """
        self.settle()
        self._task = _Task(step, lambda: self._work(step, pieces, state, clean=not hurry))
        self._task.run()
        self._tell(must=True)

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    def poll(self) -> None:
        """Tells what came of the save under way, if it has ended."""
        if not self.busy:
            self._tell()

    def settle(self) -> None:
        """Waits for the save under way and tells what came of it."""
        if self._thread is not None:
            self._thread.join()
        self._tell()

    def close(self) -> None:
        """Gives the save under way a little time: the run ends, perhaps because a peer is gone."""
        if self._thread is not None:
            self._thread.join(_END_SECONDS)

    def _work(self, step: int, pieces: Sequence[Piece], state: Mapping[str, JSON], *, clean: bool) -> Place:
        path = save(self._root, step, pieces, state, self._group)
        if clean:
            self._clean(path)
        return path

    def _clean(self, newest: Place) -> None:
        """Removes old checkpoints, once every rank has read back from the disk what it wrote of the newest."""
        due = self._rank == 0 and self._removable()
        if broadcast_bytes(b"due" if due else b"", self._group) != b"due":
            return
        troubles = gather_bytes(self._trouble(newest).encode(errors="replace"), self._group)
        trouble = next((told.decode() for told in troubles if told), "")
        if self._rank != 0:
            return
        try:
            if trouble:
                raise DataError(trouble)
            prune(self._root, self._config.keep, self._config.keep_every, self._config.keep_best)
        except (DataError, OSError) as error:
            log.error("no checkpoint is removed: %s", error)

    def _removable(self) -> bool:
        try:
            return removable(self._root, self._config.keep)
        except OSError as error:
            log.error("no checkpoint is removed: %s", error)
            return False

    def _trouble(self, path: Place) -> str:
        """What is wrong with this rank's file; empty when it holds what was written."""
        name = shard_name(self._rank)
        try:
            info = check(path).files.get(name)
            if info is not None and file_hash(folder_at(path), name) != info.hash:
                return f"{path / name} does not hold what was written"
        except (DataError, OSError) as error:
            return str(error)
        return ""

    def _tell(self, *, must: bool = False) -> None:
        task, self._task, self._thread = self._task, None, None
        if task is None:
            return
        if isinstance(task.trouble, CannotWriteError) and not must:
            if self._rank == 0:
                log.error("checkpoint of step %d failed, training goes on: %s", task.step, task.trouble)
        elif task.trouble is not None:
            raise task.trouble
        elif self._rank == 0:
            log.info("saved %s in %.1f s", self._root / step_name(task.step), time.monotonic() - task.began)
