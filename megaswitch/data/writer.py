"""Writes the indexed binary format: aside, fsynced, and renamed when whole, the `.idx` last, so that no `.idx` lacks a
good `.bin`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from megaswitch.data.layout import HEADER, MAGIC, VERSION, bin_path, code_of, idx_path, json_path
from megaswitch.data.sidecar import Sidecar, TokenizerFacts
from megaswitch.utils.errors import CannotWriteError, DataError

_LONGEST = (1 << 31) - 1


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns an operating system's refusal to write into CannotWriteError."""
    try:
        yield
    except OSError as error:
        raise CannotWriteError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another place"
        ) from error


def write_aside(path: Path, content: bytes) -> Path:
    """Writes and fsyncs `content` beside `path` under a temporary name, which it returns; leaves nothing where that
    fails."""
    aside = aside_path(path)
    with translated(path):
        try:
            with aside.open("xb") as file:
                file.write(content)
                flush(file)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    return aside


def aside_path(path: Path) -> Path:
    """A temporary name in the same folder, so that a rename puts it in place."""
    return path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:12]}")


def flush(file: IO[bytes]) -> None:
    """Down to the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_files(files: dict[Path, bytes]) -> None:
    """Writes several files, each whole or not at all, in the given order; none appears before all are written aside."""
    asides: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            with translated(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            asides[path] = write_aside(path, content)
        for path, aside in asides.items():
            with translated(path):
                aside.replace(path)
    finally:
        for aside in asides.values():
            aside.unlink(missing_ok=True)


class IndexedWriter:
    """Writes one corpus. Use as a context manager and call `finish`; leaving without it removes what was written.

    A corpus already at the prefix stays until `finish`, and is then replaced.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype[Any]) -> None:
        """`dtype`: one of the format's integer types (`layout.dtype_for`). CannotWriteError where the folder cannot be
        written."""
        self.prefix = str(prefix)
        self._dtype = dtype
        self._lengths: list[NDArray[np.int32]] = []
        self._per_document: list[NDArray[np.int64]] = []
        self._digest = xxhash.xxh3_128()
        self._path = bin_path(prefix)
        self._aside = aside_path(self._path)
        with translated(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._aside.open("xb")

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._aside.unlink(missing_ok=True)

    def add_document(self, ids: Iterable[int] | NDArray[np.integer[Any]]) -> None:
        """Appends one document of one sequence; ids must fit the dtype."""
        ids_L = np.asarray(ids, np.int64)
        self.add_documents(ids_L, np.array([ids_L.size]))

    def add_documents(
        self,
        ids_T: NDArray[np.integer[Any]],
        lengths_Q: NDArray[np.integer[Any]],
        sequences_D: NDArray[np.integer[Any]] | None = None,
    ) -> None:
        """Appends many sequences at once: their ids end to end, the length of each, and for each document its number of
        sequences.

        Without `sequences_D` each sequence is a document. DataError for ids or lengths that the format cannot hold.
        """
        assert int(lengths_Q.sum()) == ids_T.size, "lengths and ids disagree"
        limits = np.iinfo(self._dtype)
        if (
            ids_T.dtype != self._dtype
            and ids_T.size
            and (int(ids_T.min()) < limits.min or int(ids_T.max()) > limits.max)
        ):
            raise DataError(f"{self._path}: an id does not fit {self._dtype}; the vocabulary is larger than was said")
        if lengths_Q.size and int(lengths_Q.max()) > _LONGEST:
            raise DataError(f"{self._path}: a sequence has more than {_LONGEST} ids; split the document")
        content = np.ascontiguousarray(ids_T, self._dtype).view(np.uint8).data
        self._digest.update(content)
        with translated(self._path):
            self._file.write(content)
        self._lengths.append(lengths_Q.astype(np.int32))
        self._per_document.append(
            np.ones(lengths_Q.size, np.int64) if sequences_D is None else sequences_D.astype(np.int64)
        )

    def finish(
        self,
        tokenizer: TokenizerFacts | None = None,
        sources: Iterable[str] = (),
        options: dict[str, Any] | None = None,
    ) -> Sidecar:
        """Puts the corpus in place and returns its sidecar; CannotWriteError leaves what was there before."""
        lengths_Q = np.concatenate([np.empty(0, np.int32), *self._lengths])
        borders = np.concatenate([[0], np.cumsum(np.concatenate([np.empty(0, np.int64), *self._per_document]))])
        index = index_bytes(self._dtype, lengths_Q, borders)
        sidecar = Sidecar(
            sequences=int(lengths_Q.size),
            documents=int(borders.size) - 1,
            tokens=int(lengths_Q.sum(dtype=np.int64)),
            dtype=self._dtype.name,
            tokenizer=tokenizer,
            sources=list(sources),
            options=options or {},
            checksums={"bin": self._digest.hexdigest(), "idx": xxhash.xxh3_128_hexdigest(index)},
        )
        with translated(self._path):
            flush(self._file)
        self._put_in_place(index, sidecar.to_bytes())
        return sidecar

    def _put_in_place(self, index: bytes, sidecar: bytes) -> None:
        idx, json = idx_path(self.prefix), json_path(self.prefix)
        asides: list[Path] = []
        try:
            asides.append(write_aside(json, sidecar))
            asides.append(write_aside(idx, index))
            with translated(self._path):
                idx.unlink(missing_ok=True)  # an old index must not stand beside the new .bin, not even for a moment
                self._aside.replace(self._path)
                asides[0].replace(json)
                asides[1].replace(idx)
                _flush_folder(idx.parent)
        finally:
            for aside in asides:
                aside.unlink(missing_ok=True)


def index_bytes(dtype: np.dtype[Any], lengths_Q: NDArray[np.int32], borders: NDArray[np.int64]) -> bytes:
    """A whole `.idx`, byte for byte, of sequences that follow one another in the `.bin`."""
    offsets_Q = (np.cumsum(lengths_Q, dtype=np.int64) - lengths_Q) * dtype.itemsize
    header = HEADER.pack(MAGIC, VERSION, code_of(dtype), lengths_Q.size, borders.size)
    return b"".join(
        [header, lengths_Q.astype("<i4").tobytes(), offsets_Q.astype("<i8").tobytes(), borders.astype("<i8").tobytes()]
    )


def _flush_folder(folder: Path) -> None:
    """Makes the renames last through a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
