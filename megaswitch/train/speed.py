"""How fast a run is: tokens a second, the share of what the machine can multiply, and the time left."""

import time
from dataclasses import dataclass

import torch

from megaswitch.comm.collectives import all_reduce_, barrier
from megaswitch.model.flops import flops_per_sequence
from megaswitch.topology.topology import Topology
from megaswitch.train.config import RunConfig
from megaswitch.utils.host import host_read

_SIDE, _REPEATS = 1024, 8


def measured_peak(topology: Topology, dtype: torch.dtype) -> float:
    """FLOP/s of all ranks together in a square matrix product, measured now and by all at once."""
    side = _SIDE * 8 if topology.device.type == "cuda" else _SIDE
    a = torch.ones(side, side, device=topology.device, dtype=dtype)
    host_read("peak", (a @ a)[0, :1])  # warm, and nothing pending
    barrier(topology.world)
    started = time.perf_counter()
    for _ in range(_REPEATS):
        host_read("peak", (a @ a)[0, :1])
    rate = _REPEATS * 2.0 * side**3 / (time.perf_counter() - started)
    total = torch.tensor([rate], device=topology.device, dtype=torch.float64)
    return float(host_read("peak", all_reduce_(total, topology.world))[0])


@dataclass(frozen=True)
class Speed:
    """Figures of the last stretch: `tokens_per_s` counts encoder and decoder positions."""

    tokens_per_s: float
    share_of_peak: float
    seconds_left: float


class Clock:
    """Times steps; `peak` is the machine's FLOP/s."""

    def __init__(self, config: RunConfig, peak: float) -> None:
        model = config.model
        self.tokens = config.train.global_batch * (model.encoder_length + model.decoder_length)
        self.flops = 3.0 * config.train.global_batch * flops_per_sequence(model, router=True)
        self.peak, self._last = peak, time.perf_counter()
        self._smooth: float | None = None

    def lap(self, steps_left: int) -> Speed:
        """Figures of the step since the last lap; the time left goes by a running mean."""
        now = time.perf_counter()
        seconds, self._last = max(now - self._last, 1e-9), now
        self._smooth = seconds if self._smooth is None else 0.9 * self._smooth + 0.1 * seconds
        return Speed(self.tokens / seconds, self.flops / seconds / self.peak, self._smooth * steps_left)

    def skip(self) -> None:
        """Leave out the time since the last lap (evaluation, saving)."""
        self._last = time.perf_counter()


def clock_text(seconds: float) -> str:
    """Hours, minutes and seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
