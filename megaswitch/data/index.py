"""What is computed once for a corpus or an epoch, and for a large corpus kept on disk, once a node: which documents a
split has, each epoch's order, and which pieces of documents share a row.

Shape suffixes: N documents of one split, P pieces, R rows.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xxhash
from filelock import FileLock
from numpy.typing import NDArray

from megaswitch.data.native import native
from megaswitch.data.rng import permutation
from megaswitch.data.writer import aside_path

logger = logging.getLogger(__name__)

Int64s = NDArray[np.int64]
Build = Callable[[], Sequence[Int64s]]

KEPT_FROM = 1 << 20
"""Indexes of fewer entries are not kept on disk: they are made faster than files are opened."""
RULES = 2
"""Raised with every change of what the arrays mean, so that files of an older rule are not read."""
_OPEN_ROWS = 16


def epoch_order(lengths_N: Int64s, key: int) -> tuple[Int64s, Int64s]:
    """Documents in the shuffled order of `key`, and the running sum of their tokens, int64 of shape N."""
    compiled = native()
    if compiled is None:
        order_N = permutation(lengths_N.size, key)
        return order_N, np.cumsum(lengths_N[order_N])
    order_N, ends_N = np.empty_like(lengths_N), np.empty_like(lengths_N)
    compiled.build_epoch(lengths_N, key, order_N, ends_N)
    return order_N, ends_N


def pack_numpy(inputs_P: Int64s, targets_P: Int64s, room_s: int, room_t: int, open_rows: int) -> tuple[Int64s, Int64s]:
    """The oracle and fallback of the compiled `pack`; see `pack`."""
    order: list[int] = []
    borders = [0]
    rows: deque[tuple[list[int], list[int]]] = deque()  # room left on both sides, numbers
    for number, sizes in enumerate(zip(inputs_P.tolist(), targets_P.tolist(), strict=True)):
        row = next((row for row in rows if row[0][0] >= sizes[0] and row[0][1] >= sizes[1]), None)
        if row is None:
            if len(rows) >= open_rows:
                order += rows.popleft()[1]
                borders.append(len(order))
            row = ([room_s, room_t], [])
            rows.append(row)
        row[0][0] -= sizes[0]
        row[0][1] -= sizes[1]
        row[1].append(number)
    for _, numbers in rows:
        order += numbers
        borders.append(len(order))
    return np.array(order, np.int64), np.array(borders, np.int64)


def pack(inputs_P: Int64s, targets_P: Int64s, room_s: int, room_t: int) -> tuple[Int64s, Int64s]:
    """Lays samples of the given sizes into rows of the given room, each into the first of 16 open rows that has it.

    Returns their numbers row after row (int64 of shape P) and the borders of rows in them (int64 of shape R + 1).
    """
    compiled = native()
    packing = pack_numpy if compiled is None else compiled.pack
    order_P, borders_R = packing(inputs_P, targets_P, room_s, room_t, _OPEN_ROWS)
    return order_P, borders_R


class IndexStore:
    """Arrays by name, in a folder or nowhere. Safe to share by threads and, through a lock file, by processes."""

    def __init__(self, folder: Path | None) -> None:
        """Without a folder everything is made anew, in memory."""
        self.folder = folder

    def arrays(self, facts: Sequence[object], build: Build, size: int, *, keep: bool = False) -> Sequence[Int64s]:
        """What `build` gives, mapped from disk where it has been kept; `facts` is everything that it depends on.

        Kept are indexes of `KEPT_FROM` entries (`size`) or more, and with `keep` all. A folder that cannot be
        written is said once, and does no harm.
        """
        name = xxhash.xxh3_128_hexdigest(repr((RULES, *facts)).encode())
        if self.folder is None or not (keep or size >= KEPT_FROM or _path(self.folder, name, 0).exists()):
            return build()
        found = _read(self.folder, name)
        if found is not None:
            return found
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f"{name}.lock"):
                found = _read(self.folder, name)
                if found is None:
                    logger.info("building an index of %d entries below %s", size, self.folder)
                    _write(self.folder, name, build())
                    found = _read(self.folder, name)
        except OSError as error:
            says = "an index stays in memory, for %s cannot be written (%s): set data.index_dir"
            logger.warning(says, self.folder, error)
            self.folder = None
        return build() if found is None else found


def _path(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}.{number}.npy"


def _read(folder: Path, name: str) -> list[Int64s] | None:
    """The arrays, mapped; None where they are not all there. Number 0, written last, holds the others' lengths."""
    try:
        lengths = np.load(_path(folder, name, 0), allow_pickle=False)
        arrays = [
            np.load(_path(folder, name, i + 1), mmap_mode="r" if length else None, allow_pickle=False)
            for i, length in enumerate(lengths.tolist())
        ]
    except (OSError, ValueError, EOFError):
        return None
    whole = all(a.dtype == np.int64 and a.shape == (n,) for a, n in zip(arrays, lengths.tolist(), strict=True))
    return [array.view(np.ndarray) for array in arrays] if whole else None


def _write(folder: Path, name: str, arrays: Sequence[Int64s]) -> None:
    """Each array aside, then renamed; the array of lengths last."""
    lengths = np.array([array.size for array in arrays], np.int64)
    for number, array in [*enumerate(arrays, 1), (0, lengths)]:
        path = _path(folder, name, number)
        aside = aside_path(path)
        try:
            with aside.open("xb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
