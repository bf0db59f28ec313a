"""Reads the indexed binary format by memory map. Opening takes the same time for any size and believes nothing it has
not checked.

Shape suffixes: Q sequences, D documents, T tokens.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megaswitch.data.layout import DTYPE_CODES, HEADER, MAGIC, VERSION, Arrays, bin_path, idx_path
from megaswitch.data.sidecar import Sidecar, read_sidecar
from megaswitch.utils.errors import DataError, MissingInputError

Int64s = NDArray[np.int64]


class IndexedCorpus:
    """One corpus, opened for reading.

    Attributes: `tokens_T` (ids, mapped, of the file's dtype), `lengths_Q` (int32), `offsets_Q` (int64, bytes),
    `borders` (int64, documents + 1 first sequences) and the sidecar or None. The three index arrays are mapped and
    unaligned: numpy reads them, C++ must not.
    """

    def __init__(self, prefix: str | Path) -> None:
        """Opens `prefix`; MissingInputError names both paths, DataError says what is wrong in which file."""
        self.prefix = str(prefix)
        self.idx, self.bin = idx_path(prefix), bin_path(prefix)
        sizes = [_file_size(path) for path in (self.idx, self.bin)]
        if None in sizes:
            missing = " and ".join(
                str(path) for path, size in zip((self.idx, self.bin), sizes, strict=True) if size is None
            )
            raise MissingInputError(
                f"no corpus at {self.prefix}: it needs {self.idx} and {self.bin}, and {missing} is missing; "
                f"data.train and data.valid "
                "take the path without the ending"
            )
        index = _map(self.idx)
        self.dtype, arrays = self._read_header(
            index.tobytes() if index.size < HEADER.size else index[: HEADER.size].tobytes()
        )
        self._check_size(arrays, index.size)
        self.lengths_Q = np.frombuffer(index, "<i4", arrays.sequences, arrays.lengths)
        self.offsets_Q = np.frombuffer(index, "<i8", arrays.sequences, arrays.offsets)
        self.borders = np.frombuffer(index, "<i8", arrays.borders, arrays.documents)
        self._bytes = sizes[1] or 0
        self._check_ends()
        self.tokens_T: NDArray[np.integer[Any]] = _map(self.bin).view(self.dtype)
        self.sidecar: Sidecar | None = read_sidecar(prefix)
        self._check_sidecar()

    @property
    def num_sequences(self) -> int:
        """Sequences in the corpus."""
        return int(self.lengths_Q.size)

    @property
    def num_documents(self) -> int:
        """Documents in the corpus; a document is one or more sequences."""
        return int(self.borders.size) - 1

    @property
    def num_tokens(self) -> int:
        """Ids in the `.bin`."""
        return int(self.tokens_T.size)

    def document(self, number: int) -> NDArray[np.integer[Any]]:
        """The ids of one document, all its sequences joined, in the file's dtype (a view of the map)."""
        first, last = (int(self.borders[number + i]) for i in (0, 1))
        ids = [self._sequence(q) for q in range(first, last)]
        return ids[0] if len(ids) == 1 else np.concatenate([self.tokens_T[:0], *ids])

    def document_extents(self) -> tuple[Int64s, Int64s]:
        """First token and number of tokens of every document, int64 of shape D, checked against the `.bin`; reads the
        whole index."""
        borders = self.borders.astype(np.int64)
        if borders[0] != 0 or (np.diff(borders) < 0).any():
            raise DataError(
                f"{self.idx}: its documents are not in order; the file is corrupt, prepare the corpus again"
            )
        starts_Q = self.offsets_Q // self.dtype.itemsize
        edges = np.append(starts_Q, starts_Q[-1] + self.lengths_Q[-1] if starts_Q.size else 0)[borders]
        starts_D, lengths_D = edges[:-1], np.diff(edges)
        if (lengths_D < 0).any() or edges[0] < 0 or edges[-1] > self.num_tokens:
            raise DataError(
                f"{self.idx}: its offsets do not follow one another in {self.bin}; prepare the corpus again"
            )
        return starts_D, lengths_D

    def check_unchanged(self) -> None:
        """Refuses a `.bin` that shrank since it was opened: reading beyond its end would kill the process with
        SIGBUS."""
        size = _file_size(self.bin)
        if size is not None and size < self._bytes:
            raise DataError(
                f"{self.bin} shrank from {self._bytes} to {size} bytes while in use; restore it and start again"
            )

    def _sequence(self, number: int) -> NDArray[np.integer[Any]]:
        first = int(self.offsets_Q[number]) // self.dtype.itemsize
        length = int(self.lengths_Q[number])
        if first < 0 or length < 0 or first + length > self.num_tokens:
            raise DataError(
                f"{self.idx}: sequence {number} lies outside {self.bin}; the file is corrupt, prepare the corpus again"
            )
        return self.tokens_T[first : first + length]

    def _read_header(self, header: bytes) -> tuple[np.dtype[Any], Arrays]:
        if len(header) < HEADER.size:
            raise DataError(
                f"{self.idx} is truncated: {len(header)} bytes, the header alone has {HEADER.size}; prepare the "
                f"corpus again"
            )
        magic, version, code, sequences, borders = HEADER.unpack(header)
        if magic != MAGIC:
            raise DataError(f"{self.idx} is not an index of this format: it begins with {magic!r}, not {MAGIC!r}")
        if version != VERSION:
            raise DataError(f"{self.idx} has version {version}, this program reads version {VERSION}")
        dtype = DTYPE_CODES.get(code)
        if dtype is None or dtype.kind == "f":
            raise DataError(f"{self.idx} has the dtype code {code}, which is no integer type; token ids are integers")
        return dtype, Arrays(sequences, borders)

    def _check_size(self, arrays: Arrays, size: int) -> None:
        # Python's integers do not overflow, so counts of 2^63 are compared and refused like any others.
        if size == arrays.end + arrays.sequences and arrays.sequences > 0:
            raise DataError(f"{self.idx} is multimodal: it holds a mode for each sequence; only text corpora are read")
        if size != arrays.end:
            raise DataError(
                f"{self.idx} has {size} bytes where its counts ({arrays.sequences} sequences, {arrays.borders} "
                f"document borders) need "
                f"{arrays.end}: it is truncated or corrupt; prepare the corpus again"
            )
        if arrays.borders < 1:
            raise DataError(f"{self.idx} has no document array; prepare the corpus again")

    def _check_ends(self) -> None:
        """First and last entries, against the length of the `.bin`."""
        if int(self.borders[0]) != 0 or int(self.borders[-1]) != self.num_sequences:
            raise DataError(
                f"{self.idx}: its document array runs from {self.borders[0]} to {self.borders[-1]}, not from 0 to "
                f"{self.num_sequences}; "
                "the file is corrupt, prepare the corpus again"
            )
        expected = 0
        if self.num_sequences:
            if int(self.offsets_Q[0]) != 0 or min(int(self.lengths_Q[0]), int(self.lengths_Q[-1])) < 0:
                raise DataError(
                    f"{self.idx}: its first sequence does not begin at 0; the file is corrupt, prepare the corpus again"
                )
            expected = int(self.offsets_Q[-1]) + int(self.lengths_Q[-1]) * self.dtype.itemsize
        if expected != self._bytes:
            raise DataError(
                f"{self.bin} has {self._bytes} bytes where {self.idx} speaks of {expected}: one of them is truncated "
                f"or belongs to "
                "another corpus; prepare the corpus again"
            )
        if self._bytes % self.dtype.itemsize:
            raise DataError(f"{self.bin} has {self._bytes} bytes, which are no whole number of {self.dtype} ids")

    def _check_sidecar(self) -> None:
        if self.sidecar is None:
            return
        stated = (self.sidecar.sequences, self.sidecar.documents, self.sidecar.tokens)
        found = (self.num_sequences, self.num_documents, self.num_tokens)
        if stated != found:
            raise DataError(
                f"{self.prefix}.json speaks of {stated} sequences, documents and tokens, the corpus has {found}: they "
                f"do not belong "
                "together; prepare the corpus again"
            )


def _file_size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size if path.is_file() else None
    except OSError:
        return None


def _map(path: Path) -> NDArray[np.uint8]:
    """A file's bytes, mapped read-only; an empty file, which cannot be mapped, is an empty array."""
    if _file_size(path) == 0:
        return np.empty(0, np.uint8)
    try:
        return np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    except OSError as error:
        raise MissingInputError(f"{path} cannot be opened: {error.strerror}") from None
