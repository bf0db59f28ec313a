"""Where checkpoints are: a path on a disk, or a URL of an object store (`s3://bucket/run`, `memory://run`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

_SIGN = "://"


@dataclass(frozen=True)
class Url:
    """A URL, with as much of pathlib's manners as one needs to name a folder or file below another."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text}{'' if self.text.endswith('/') else '/'}{name}")

    @property
    def name(self) -> str:
        """What stands behind the last slash."""
        return self.text.rpartition("/")[2]

    @property
    def parent(self) -> "Url":
        """What stands before it."""
        start, slash, _ = self.text.rpartition("/")
        return Url(start + slash if start.endswith(":/") else start)

    def with_name(self, name: str) -> "Url":
        """Another name below the same parent."""
        return self.parent / name


Place: TypeAlias = Path | Url


def place(where: str | Place) -> Place:
    """A text as a URL when it looks like one, else as a path."""
    if not isinstance(where, str):
        return where
    scheme, sign, rest = where.partition(_SIGN)
    return Url(f"{scheme}{sign}{rest.rstrip('/')}") if sign else Path(where)
