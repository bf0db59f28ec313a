"""The bytes of a `.idx`: header, dtype codes and the places of its arrays. Reader and writer share this and nothing
else.

Little-endian throughout; the arrays behind the header are not aligned to their item size.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, length of the document array
DTYPE_CODES: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f8"),
    7: np.dtype("<f4"),
    8: np.dtype("<u2"),
}
UINT16_BELOW = 65_500
"""uint16 serves vocabularies of fewer ids than this, int32 the others (the bound that other writers of this format
use)."""


@dataclass(frozen=True)
class Arrays:
    """Byte offsets of the arrays of an `.idx` with `sequences` sequences and a document array of `borders` entries."""

    sequences: int
    borders: int

    @property
    def lengths(self) -> int:
        """int32 length of each sequence, in ids."""
        return HEADER.size

    @property
    def offsets(self) -> int:
        """int64 byte offset of each sequence in the `.bin`."""
        return self.lengths + 4 * self.sequences

    @property
    def documents(self) -> int:
        """int64 number of each document's first sequence, and the number of sequences."""
        return self.offsets + 8 * self.sequences

    @property
    def end(self) -> int:
        """Length of the file."""
        return self.documents + 8 * self.borders


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """The dtype of ids below `vocab_size`."""
    return DTYPE_CODES[8] if vocab_size < UINT16_BELOW else DTYPE_CODES[4]


def code_of(dtype: np.dtype[Any]) -> int:
    """The code of a dtype; the dtype must be one of the format's."""
    return next(code for code, known in DTYPE_CODES.items() if known == dtype)


def idx_path(prefix: str | Path) -> Path:
    """`PREFIX.idx`; the prefix may hold dots of its own."""
    return Path(f"{prefix}.idx")


def bin_path(prefix: str | Path) -> Path:
    """`PREFIX.bin`."""
    return Path(f"{prefix}.bin")


def json_path(prefix: str | Path) -> Path:
    """`PREFIX.json`, the sidecar."""
    return Path(f"{prefix}.json")
