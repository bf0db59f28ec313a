"""Which processors a benchmark runs on, and what they are."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_LOOK = 0.3  # seconds over which the idlest processors are sought
_PACKAGES = ("torch", "transformers", "numpy")


def pin(threads: int, processes: int = 1, *, patient: bool = False) -> None:
    """Keep this process and all that it starts, `processes` of `threads` threads, to as many processors: the idlest.
    Threads without work wait actively, unless `patient`, which is slower on an idle machine and much faster on another.

    To be called before torch is imported: its libraries read the environment when they are loaded.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if patient:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if not hasattr(os, "sched_setaffinity"):
        return
    mine = os.sched_getaffinity(0)
    busy = dict(enumerate(psutil.cpu_percent(_LOOK, percpu=True)))
    os.sched_setaffinity(0, sorted(mine, key=lambda cpu: busy.get(cpu, 0.0))[: threads * processes])


def describe(threads: int) -> dict[str, Any]:
    """The machine, what it was doing besides, and the versions that matter."""
    return {
        "cpu": _processor(),
        "processors": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        **{name: found for name in _PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
