"""Configuration of the operations (no torch here)."""

from dataclasses import dataclass
from typing import Literal

Backend = Literal["auto", "reference", "cpp", "triton", "apex"]


@dataclass(frozen=True)
class OpsConfig:
    """Which implementations a run uses.

    Args:
        backend: "auto" takes the fastest that is to be had on the device (C++ on a CPU, Triton on a GPU), operation by
            operation, and torch's own where there is none; the others are taken or refused: "reference" (plain
            torch), "cpp", "triton", "apex" (NVIDIA's fused norms and optimizers, Triton for the rest).
    """

    backend: Backend = "auto"
