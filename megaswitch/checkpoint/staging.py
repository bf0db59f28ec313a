"""Copies of what is to be saved, in memory that is kept from save to save (pinned where a GPU copies into it)."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from megaswitch.checkpoint.format import Piece

_SHARE = 0.5
"""Of the memory that is free on a machine, its processes take this much together at most."""


class Staging:
    """Copies pieces, so that they can be written while the originals change. One set of copies at a time."""

    def __init__(self, local_world: int = 1) -> None:
        self._local_world = local_world
        self._copies: list[torch.Tensor] = []

    def take(self, pieces: Sequence[Piece]) -> list[Piece] | None:
        """The pieces with copies on the CPU in place of their tensors, complete when this returns; None when there
        is no room for them. What was taken before is overwritten."""
        if not self._fits(pieces):
            self._copies = []
            room = spare_memory() * _SHARE / self._local_world
            if sum(map(_held, pieces)) > room:
                return None
            self._copies = [_buffer(piece) for piece in pieces]
        for copy, piece in zip(self._copies, pieces, strict=True):
            copy.copy_(piece.tensor, non_blocking=True)
        for device in {piece.tensor.device for piece in pieces if piece.tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return [replace(piece, tensor=copy) for copy, piece in zip(self._copies, pieces, strict=True)]

    def _fits(self, pieces: Sequence[Piece]) -> bool:
        """Whether the memory from the last time serves again."""
        return [(c.shape, c.dtype) for c in self._copies] == [(p.tensor.shape, p.tensor.dtype) for p in pieces]


def _buffer(piece: Piece) -> torch.Tensor:
    return torch.empty(piece.tensor.shape, dtype=piece.tensor.dtype, pin_memory=piece.tensor.is_cuda)


def _held(piece: Piece) -> int:
    """Bytes that a copy takes: torch rounds pinned memory up to a power of two."""
    size = piece.tensor.numel() * piece.tensor.element_size()
    return 1 << (size - 1).bit_length() if piece.tensor.is_cuda and size else size


def spare_memory() -> int:
    """Bytes that this machine, or the container this process is in, can still give."""
    available = int(psutil.virtual_memory().available)
    limit = _control_group_limit()
    return available if limit is None else min(available, limit)


def _control_group_limit() -> int | None:
    """What is left of the container's memory (cgroup v2); None without a limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        folder = Path("/sys/fs/cgroup") / next(line[3:] for line in lines if line.startswith("0::")).lstrip(os.sep)
        most, used = (folder / "memory.max").read_text().strip(), int((folder / "memory.current").read_text())
        cached = next(
            int(line.split()[1])
            for line in (folder / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
        return None if most == "max" else max(0, int(most) - used + cached)
    except (OSError, StopIteration, ValueError):
        return None
