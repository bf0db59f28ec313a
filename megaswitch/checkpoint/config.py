"""When checkpoints are written and which one a run starts from (no torch here)."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints.

    Args:
        every: steps between checkpoints; 0 writes only the last.
        keep: how many of the newest stay; 0 keeps all.
        resume: "auto" (the newest that verifies, else a fresh start), "none", or the path of a checkpoint.
        data_mismatch: "refuse" or "accept" a checkpoint whose data fingerprint is not this run's.
    """

    every: int = 1000
    keep: int = 3
    resume: str = "auto"
    data_mismatch: Literal["refuse", "accept"] = "refuse"
