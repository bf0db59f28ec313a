"""When checkpoints are written and which one a run starts from (no torch here)."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints.

    Args:
        dir: folder or URL (such as `s3://bucket/run`) of the checkpoints; empty means `checkpoints` below the run's.
        every: steps between checkpoints; 0 writes only the last.
        asynchronous: whether training goes on while a checkpoint is written, when there is memory for a copy.
        keep: how many of the newest stay; 0 keeps all.
        keep_every: checkpoints whose step is a multiple of it stay as well; 0 is none.
        keep_best: how many of those with the lowest validation nll at their step stay as well.
        resume: "auto" (the newest that verifies; a fresh start where there are none), "none", or the path or URL of
            a checkpoint.
        data_mismatch: "refuse" or "accept" a checkpoint whose data fingerprint is not this run's.
    """

    dir: str = ""
    every: int = 1000
    asynchronous: bool = True
    keep: int = 3
    keep_every: int = 0
    keep_best: int = 0
    resume: str = "auto"
    data_mismatch: Literal["refuse", "accept"] = "refuse"
