"""What torch's compiler "inductor" needs of a machine: a compiler, and a folder for code that nobody else writes to."""

import os
import stat
import sysconfig
from pathlib import Path

import torch

from megaswitch.utils.errors import CannotWriteError, UserError

CACHE, THREADS = "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"
_OR = "or set train.compile=none"


def refuse_without_compiler(device: torch.device) -> None:
    """UserError, with what to do, unless inductor can work for this device. It then compiles in this process alone,
    unless TORCHINDUCTOR_COMPILE_THREADS says otherwise: a process of few graphs needs no pool of others."""
    import torch._inductor.config as inductor  # with all that it brings, only where it is wanted

    if device.type == "cuda":
        _refuse_without_triton()
    else:
        _refuse_without_cpp()
    _keep_code_in(_cache())
    if THREADS not in os.environ:
        inductor.compile_threads = 1


def _refuse_without_cpp() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        tried = os.environ.get("CXX", "g++")
        raise UserError(
            f"train.compile=inductor wants a C++ compiler, and {tried} does not answer: install g++, name another one "
            f"in CXX, {_OR}"
        ) from None
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise UserError(f"train.compile=inductor wants Python's headers, and {header} is missing: install them, {_OR}")


def _refuse_without_triton() -> None:
    from torch.utils._triton import has_triton

    if not has_triton():
        raise UserError(f"train.compile=inductor wants Triton on a GPU, and it does not work here: install it, {_OR}")


def _cache() -> Path:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    return Path(os.environ.get(CACHE) or default_cache_dir()).absolute()


def _keep_code_in(folder: Path) -> None:
    """What is found there is run: whoever can write to it can run code as this user."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        why = f"cannot keep compiled code: {error.strerror}"
        raise CannotWriteError(f"{folder} {why}; name another folder in {CACHE}") from None
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(
            f"others can write to {folder}, from which compiled code would be run: take their right away "
            f"(chmod go-w), name a folder of your own in {CACHE}, {_OR}"
        )
    os.environ[CACHE] = str(folder)
