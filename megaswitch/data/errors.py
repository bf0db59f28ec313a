"""The errors that users of the data tower meet; each carries the exit code a command ends with."""

from __future__ import annotations

from typing import ClassVar


class DataError(ValueError):
    """Data that is there but wrong: corrupt, truncated, of another format or vocabulary."""

    exit_code: ClassVar[int] = 65


class DataUsageError(DataError):
    """A setting or an argument about data that cannot work."""

    exit_code: ClassVar[int] = 64


class MissingDataError(DataError):
    """A file that should be there and is not."""

    exit_code: ClassVar[int] = 66


class DataWriteError(DataError):
    """An output that cannot be written (no space, no permission, not a folder)."""

    exit_code: ClassVar[int] = 73
