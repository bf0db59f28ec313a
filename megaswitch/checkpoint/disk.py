"""A folder on a disk."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_EARLY = 32 << 20
"""The disk begins to work on every so many bytes at once: what is left to the end is waited for."""
_ADVICE = hasattr(os, "posix_fadvise")


class DiskSource:
    """A regular file, open for reading: never a link, a pipe or a device, which could lead elsewhere or block."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            self._file.close()
            raise OSError(0, "is no regular file")
        self.size = status.st_size

    def read_into(self, offset: int, out: Any) -> None:
        """See `Source`."""
        view = memoryview(out)
        self._file.seek(offset)
        while view:
            count = self._file.readinto(view)
            if not count:
                raise OSError(0, "ends before its time: it was cut while it was read")
            view = view[count:]


class DiskFolder:
    """See `Folder`."""

    renames = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def sizes(self) -> dict[str, int]:
        """See `Folder`."""
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._path) as entries:
            return {e.name: e.stat(follow_symlinks=False).st_size for e in entries if e.is_file(follow_symlinks=False)}
        return {}

    def folders(self) -> list[str]:
        """See `Folder`."""
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._path) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
        return []

    def source(self, name: str) -> DiskSource:
        """See `Folder`."""
        return DiskSource(self._path / name)

    @contextmanager
    def sink(self, name: str) -> Iterator[Callable[[bytes | memoryview], None]]:
        """See `Folder`; FileExistsError when there is such a file."""
        descriptor = os.open(self._path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            yield _Writer(descriptor).write
            os.fsync(descriptor)
            if _ADVICE:  # nobody needs it in memory, and who reads it back shall read the disk
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def discard(self, name: str) -> None:
        """See `Folder`."""
        (self._path / name).unlink(missing_ok=True)

    def make(self) -> None:
        """See `Folder`."""
        self._path.mkdir(parents=True, exist_ok=True)

    def settle(self) -> None:
        """See `Folder`."""
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def move_to(self, name: str) -> None:
        """See `Folder`."""
        self._path.rename(self._path.with_name(name))

    def remove(self) -> None:
        """See `Folder`."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self._path)

    def free(self) -> int | None:
        """See `Folder`."""
        return shutil.disk_usage(self._path).free


class _Writer:
    """Writes to a file in order, and has the disk keep pace."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._written, self._begun = descriptor, 0, 0

    def write(self, data: bytes | memoryview) -> None:
        """All of it: one call of the system may take less, as it does when the disk is nearly full."""
        view = memoryview(data)
        while view:
            count = os.write(self._descriptor, view)
            view, self._written = view[count:], self._written + count
        if _ADVICE and self._written - self._begun >= _EARLY:
            # starts writing to the disk what is only in memory yet, and waits for nothing
            os.posix_fadvise(
                self._descriptor, self._begun, self._written - self._begun, os.POSIX_FADV_DONTNEED
            )
            self._begun = self._written
