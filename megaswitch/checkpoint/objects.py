"""A folder of an object store, through fsspec.

There, a folder is no more than the beginning of its files' names: it cannot be renamed at once, and what is written
bears its final name at once. So a checkpoint there begins to exist with its manifest, which is written last.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from fsspec.core import url_to_fs

from megaswitch.checkpoint.format import MANIFEST
from megaswitch.utils.errors import UserError


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Stores raise what they please (no credentials, no such bucket)."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(0, f"{type(error).__name__}: {error}") from error


class ObjectSource:
    """See `Source`."""

    def __init__(self, system: Any, path: str) -> None:
        self._system, self._path = system, path
        with _as_os_error():
            info = system.info(path)
        if info["type"] != "file" or info.get("islink"):
            raise OSError(0, "is no regular file")
        self.size: int = info["size"]

    def read_into(self, offset: int, out: Any) -> None:
        """See `Source`."""
        if not out.size:
            return
        with _as_os_error():
            data = self._system.cat_file(self._path, start=offset, end=offset + out.size)
        if len(data) != out.size:
            raise OSError(0, "ends before its time")
        out[...] = np.frombuffer(data, dtype=np.uint8)


class ObjectFolder:
    """See `Folder`."""

    renames = False

    def __init__(self, url: str) -> None:
        try:
            self._system, path = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:  # an unknown scheme, or one whose package is not installed
            raise UserError(f"{url} cannot be used: {error}") from error
        self._path = path.rstrip("/")

    def _entries(self) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError, NotADirectoryError), _as_os_error():
            self._system.invalidate_cache(self._path)
            return [e for e in self._system.ls(self._path, detail=True) if e["name"].rstrip("/") != self._path]
        return []

    def sizes(self) -> dict[str, int]:
        """See `Folder`."""
        return {_name(e): e["size"] for e in self._entries() if e["type"] == "file" and not e.get("islink")}

    def folders(self) -> list[str]:
        """See `Folder`."""
        return [_name(entry) for entry in self._entries() if entry["type"] == "directory"]

    def source(self, name: str) -> ObjectSource:
        """See `Folder`."""
        return ObjectSource(self._system, f"{self._path}/{name}")

    @contextmanager
    def sink(self, name: str) -> Iterator[Callable[[bytes | memoryview], None]]:
        """See `Folder`."""
        with _as_os_error(), self._system.open(f"{self._path}/{name}", "wb") as file:

            def write(data: bytes | memoryview) -> None:
                file.write(data)

            yield write

    def discard(self, name: str) -> None:
        """See `Folder`."""
        with suppress(FileNotFoundError), _as_os_error():
            self._system.rm_file(f"{self._path}/{name}")

    def make(self) -> None:
        """See `Folder`."""
        with _as_os_error():
            self._system.makedirs(self._path, exist_ok=True)

    def settle(self) -> None:
        """Nothing to do: a file that is closed is stored."""

    def move_to(self, name: str) -> None:
        """Copies, then removes: stores know nothing better."""
        with _as_os_error():
            self._system.mv(self._path, f"{self._path.rpartition('/')[0]}/{name}", recursive=True)

    def remove(self) -> None:
        """See `Folder`."""
        self.discard(MANIFEST)  # what is half removed is no checkpoint
        with suppress(FileNotFoundError), _as_os_error():
            self._system.rm(self._path, recursive=True)

    def free(self) -> int | None:
        """See `Folder`."""
        return None


def _name(entry: dict[str, Any]) -> str:
    name: str = entry["name"]
    return name.rstrip("/").rpartition("/")[2]
