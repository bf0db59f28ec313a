"""What the checkpoint code asks of a place to keep files, be it a disk or an object store.

Everything that fails raises OSError.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megaswitch.checkpoint.disk import DiskFolder
from megaswitch.checkpoint.places import Place, Url

Bytes = npt.NDArray[np.uint8]


class Source(Protocol):
    """A file that is open for reading."""

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        ...

    def read_into(self, offset: int, out: Bytes) -> None:
        """Fills `out` with the bytes from `offset` on; OSError when there are not as many."""
        ...


class Folder(Protocol):
    """A folder, which need not be there yet, and the files right in it."""

    @property
    def renames(self) -> bool:
        """Whether a folder can be renamed at once, so that something half written never bears its final name."""
        ...

    def sizes(self) -> dict[str, int]:
        """Sizes of the regular files (no links) right in the folder, by name; none when there is no folder."""
        ...

    def folders(self) -> list[str]:
        """Names of the folders right in it."""
        ...

    def source(self, name: str) -> Source:
        """A regular file, opened; a link is none."""
        ...

    def sink(self, name: str) -> AbstractContextManager[Callable[[bytes | memoryview], None]]:
        """What writes a new file, bit by bit; when the block ends well, the file is durable."""
        ...

    def discard(self, name: str) -> None:
        """Removes a file, if it is there."""
        ...

    def make(self) -> None:
        """Has the folder be there, and its parents."""
        ...

    def settle(self) -> None:
        """Has the folder's entries be durable."""
        ...

    def move_to(self, name: str) -> None:
        """Gives the folder another name beside its old one."""
        ...

    def remove(self) -> None:
        """Removes the folder with all that is in it, the manifest first; nothing happens when it is not there."""
        ...

    def free(self) -> int | None:
        """Bytes that can still be written; None where nobody knows."""
        ...


def folder_at(where: Place) -> Folder:
    """The folder at a path or URL. UserError for a URL of a scheme that is unknown or not installed."""
    if isinstance(where, Url):
        from megaswitch.checkpoint.objects import ObjectFolder  # fsspec is for those who use it

        return ObjectFolder(where.text)
    return DiskFolder(where)


def read_whole(folder: Folder, name: str, most: int) -> bytes:
    """A small file's bytes; OSError when it is larger than `most`."""
    source = folder.source(name)
    if source.size > most:
        raise OSError(0, f"{source.size} bytes are more than it can have")
    out = np.empty(source.size, dtype=np.uint8)
    source.read_into(0, out)
    return out.tobytes()
