"""How much memory is in use, and a warning before there is none left."""

import logging
from contextlib import suppress

import psutil
import torch

from megaswitch.checkpoint.staging import spare_memory

log = logging.getLogger(__name__)


class Memory:
    """Looks at the host's and the device's memory."""

    def __init__(self, device: torch.device, limit: float) -> None:
        """Above `limit`, a share of what there is, a warning is given, once until it falls below again."""
        self._device, self._limit = device, limit
        self._process, self._warned, self._resident = psutil.Process(), False, 0.0

    def used_gb(self) -> float:
        """Of this process, in 10^9 bytes: on a GPU the most that it held so far, else what is resident."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_reserved(self._device) / 1e9
        with suppress(OSError):  # without a free file descriptor: what it was before
            self._resident = float(self._process.memory_info().rss) / 1e9
        return self._resident

    def look(self, step: int) -> None:
        """Warn where there is little left."""
        with suppress(OSError):
            self._look(step)

    def _look(self, step: int) -> None:
        shares = {"this host's memory": 1.0 - spare_memory() / psutil.virtual_memory().total}
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            shares["the device's memory"] = 1.0 - free / total
        full = [f"{share:.0%} of {what}" for what, share in shares.items() if share > self._limit]
        if full and not self._warned:
            log.warning("step %d: %s is in use", step, " and ".join(full))
        self._warned = bool(full)
