"""Writes the indexed binary format: aside, fsynced, and renamed when whole, the `.idx` last, so that no `.idx` lacks a
good `.bin`.

Memory does not grow with the corpus. A file that is being written is locked; what a killed writer left is not, and is
removed by the next writer of the same corpus.
"""

from __future__ import annotations

import fcntl
import glob
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from megaswitch.data.layout import HEADER, MAGIC, VERSION, bin_path, code_of, idx_path, json_path
from megaswitch.data.sidecar import BlockDigest, Sidecar, TokenizerFacts
from megaswitch.utils.errors import CannotWriteError, DataError

_LONGEST = (1 << 31) - 1
_AT_ONCE = 1 << 20  # entries of the index that are in memory while it is put together


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns an operating system's refusal to write into CannotWriteError."""
    try:
        yield
    except OSError as error:
        raise CannotWriteError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another place"
        ) from error


def aside_path(path: Path) -> Path:
    """A temporary name in the same folder, so that a rename puts it in place."""
    return path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:12]}")


def open_aside(aside: Path) -> IO[bytes]:
    """A new file, locked while it is open."""
    file = aside.open("xb")
    with suppress(OSError):  # some network file systems have no locks: then nothing there is ever taken for stale
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def remove_stale(folder: Path, name: str = "*") -> None:
    """Removes what writers that were killed left of files `name` (a glob); those of living ones are locked and stay."""
    for stale in glob.glob(f"{glob.escape(str(folder))}/{name}.tmp-*"):
        with suppress(OSError), open(stale, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(stale)


def write_aside(path: Path, content: Iterable[bytes], durable: bool = True) -> tuple[Path, str]:
    """Writes `content` beside `path` under a temporary name; returns that name and the xxh3-128 of the content.

    Leaves nothing where that fails. `durable`: down to the disk.
    """
    aside, digest = aside_path(path), xxhash.xxh3_128()
    with translated(path):
        try:
            with open_aside(aside) as file:
                for piece in content:
                    digest.update(piece)
                    file.write(piece)
                flush(file, durable)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    return aside, str(digest.hexdigest())


def flush(file: IO[bytes], durable: bool = True) -> None:
    """Out of this process, and down to the disk if it has to be durable."""
    file.flush()
    if durable:
        os.fsync(file.fileno())


def write_files(files: dict[Path, bytes]) -> None:
    """Writes several files, each whole or not at all, in the given order; none appears before all are written aside."""
    asides: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            with translated(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            asides[path], _ = write_aside(path, [content])
        for path, aside in asides.items():
            with translated(path):
                aside.replace(path)
    finally:
        for aside in asides.values():
            aside.unlink(missing_ok=True)


class IndexedWriter:
    """Writes one corpus. Use as a context manager and call `finish`; leaving without it removes what was written.

    A corpus already at the prefix stays until `finish`, and is then replaced. Lengths and borders are kept in files
    without a name, which vanish with the process.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype[Any], durable: bool = True) -> None:
        """`dtype`: one of the format's integer types (`layout.dtype_for`). `durable`: fsync, which a corpus that can
        be made again at once may do without. CannotWriteError where the folder cannot be written."""
        self.prefix = str(prefix)
        self._dtype = dtype
        self._durable = durable
        self._sequences = self._documents = self._tokens = 0
        self._digest = BlockDigest()
        self._path = bin_path(prefix)
        self._aside = aside_path(self._path)
        with translated(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(self._path.parent, f"{glob.escape(self._path.stem)}.*")
            self._lengths, self._borders = (_nameless(self._path.parent) for _ in range(2))
            self._file = open_aside(self._aside)

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._file, self._lengths, self._borders):
            with suppress(OSError):  # a full disk has been told of already
                file.close()
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
        tokens = int(lengths_Q.sum(dtype=np.int64))
        assert tokens == ids_T.size, "lengths and ids disagree"
        limits = np.iinfo(self._dtype)
        if (
            ids_T.dtype != self._dtype
            and ids_T.size
            and (int(ids_T.min()) < limits.min or int(ids_T.max()) > limits.max)
        ):
            raise DataError(f"{self._path}: an id does not fit {self._dtype}; the vocabulary is larger than was said")
        if lengths_Q.size and int(lengths_Q.max()) > _LONGEST:
            raise DataError(f"{self._path}: a sequence has more than {_LONGEST} ids; split the document")
        per_document = np.ones(lengths_Q.size, np.int64) if sequences_D is None else sequences_D
        content = np.ascontiguousarray(ids_T, self._dtype).view(np.uint8).data
        self._digest.update(content)
        with translated(self._path):
            self._file.write(content)
            self._lengths.write(lengths_Q.astype("<i4").data)
            self._borders.write((np.cumsum(per_document, dtype="<i8") + self._sequences).data)
        self._sequences += int(lengths_Q.size)
        self._documents += int(per_document.size)
        self._tokens += tokens

    def finish(
        self,
        tokenizer: TokenizerFacts | None = None,
        sources: Iterable[str] = (),
        options: dict[str, Any] | None = None,
    ) -> Sidecar:
        """Puts the corpus in place and returns its sidecar; CannotWriteError leaves what was there before."""
        asides: list[Path] = []
        try:
            aside, index_digest = write_aside(idx_path(self.prefix), self._index(), self._durable)
            asides.append(aside)
            sidecar = Sidecar(
                sequences=self._sequences,
                documents=self._documents,
                tokens=self._tokens,
                dtype=self._dtype.name,
                tokenizer=tokenizer,
                sources=list(sources),
                options=options or {},
                checksums={"bin": self._digest.whole(), "idx": index_digest},
                blocks=self._digest.blocks(),
            )
            asides.append(write_aside(json_path(self.prefix), [sidecar.to_bytes()], self._durable)[0])
            with translated(self._path):
                flush(self._file, self._durable)
            self._put_in_place(*asides)
        finally:
            for aside in asides:
                aside.unlink(missing_ok=True)
        return sidecar

    def _put_in_place(self, index: Path, sidecar: Path) -> None:
        idx = idx_path(self.prefix)
        with translated(self._path):
            idx.unlink(missing_ok=True)  # an old index must not stand beside the new .bin, not even for a moment
            self._aside.replace(self._path)
            sidecar.replace(json_path(self.prefix))
            index.replace(idx)
            if self._durable:
                _flush_folder(idx.parent)

    def _index(self) -> Iterator[bytes]:
        """The `.idx` in pieces: header, lengths, offsets (the running sum of the lengths), borders."""
        yield HEADER.pack(MAGIC, VERSION, code_of(self._dtype), self._sequences, self._documents + 1)
        yield from _pieces(self._lengths, 4)
        offset = 0
        for piece in _pieces(self._lengths, 4):
            ends_Q = np.cumsum(np.frombuffer(piece, "<i4"), dtype="<i8") * self._dtype.itemsize + offset
            yield np.concatenate([[offset], ends_Q[:-1]]).astype("<i8").tobytes()
            offset = int(ends_Q[-1])
        yield bytes(8)  # the first document begins with sequence 0
        yield from _pieces(self._borders, 8)


def _nameless(folder: Path) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)


def _pieces(file: IO[bytes], width: int) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(_AT_ONCE * width):
        yield piece


def _flush_folder(folder: Path) -> None:
    """Makes the renames last through a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
