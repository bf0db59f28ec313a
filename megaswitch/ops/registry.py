"""Chooses the implementation of the operations, and says what is to be had and why the rest is not."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from megaswitch.ops.apex.backend import apex_ops
from megaswitch.ops.apex.load import apex_kernels
from megaswitch.ops.config import Backend
from megaswitch.ops.cpp.load import cpp_kernels
from megaswitch.ops.fused.backend import fused_ops
from megaswitch.ops.fused.kernels import KERNELS
from megaswitch.ops.library import SHAPES, library
from megaswitch.ops.ops import Ops
from megaswitch.ops.triton.load import triton_kernels
from megaswitch.ops.unavailable import Unavailable
from megaswitch.utils.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A backend: the kind of device its kernels run on, what loads them (or raises Unavailable), and the operations
    that are made of them."""

    device: str
    load: Callable[[], Any]
    ops: Callable[[Any], Ops]


SOURCES = {
    "cpp": Source("cpu", cpp_kernels, partial(fused_ops, "cpp")),
    "triton": Source("cuda", triton_kernels, partial(fused_ops, "triton")),
    "apex": Source("cuda", apex_kernels, apex_ops),
}
"""Backends with kernels of their own, the fastest of a device first."""


def choose_ops(backend: Backend, device: torch.device) -> Ops:
    """The operations of a run on that device; UserError where the backend asked for is not to be had.

    "auto" goes on with plain torch, and says why, where the fastest is not. On the meta device kernels have shapes
    alone, and "auto" stands for what a GPU would run.
    """
    name = _fastest(device.type) if backend == "auto" else backend
    if name == "reference":
        return Ops()
    if device.type == "meta" and name in SOURCES:
        return SOURCES[name].ops(library(SHAPES, KERNELS))
    reason = why_not(name, device.type)
    if not reason:
        return SOURCES[name].ops(SOURCES[name].load())
    if backend != "auto":
        raise UserError(f"ops.backend={backend}: {reason}")
    logger.warning("plain torch does the operations: %s", reason)
    return Ops()


def in_words(ops: Ops) -> str:
    """One line for the log."""
    names = ops.replaced()
    own = f"operations by {ops.name}: {', '.join(names)}" if names else "operations by plain torch"
    return f"{own}; to be compiled by torch: {', '.join(ops.compiled)}" if ops.compiled else own


def availability() -> dict[str, str]:
    """Why each backend cannot be used on the kind of device it is for; empty where it can."""
    return {"reference": "", **{name: why_not(name, source.device) for name, source in SOURCES.items()}}


def _fastest(device: str) -> str:
    wanted = "cuda" if device == "meta" else device
    return next((name for name, source in SOURCES.items() if source.device == wanted), "reference")


def why_not(backend: str, device: str) -> str:
    """Why a backend cannot be used on that kind of device; empty when it can."""
    if backend == "reference":
        return ""
    source = SOURCES.get(backend)
    if source is None:
        return f"there is no backend {backend}"
    if source.device != device:
        return f"its kernels are for {source.device} devices, and this run is on {device}"
    try:
        source.load()
    except Unavailable as error:
        return str(error)
    return ""
