"""Opens inputs as streams of bytes: files, fsspec addresses, standard input; unpacked on the way.

However far a compressed file blows up, it is unpacked some tens of MiB at a time. One that ends in the middle is an
error: what was read of it until then must not pass for the whole.
"""

from __future__ import annotations

import io
import lzma
import os
import sys
import zlib
from collections.abc import Callable
from importlib import import_module
from typing import IO, Any

from megaswitch.data.prep.inputs import STDIN, Source, file_system, is_remote
from megaswitch.utils.errors import DataError, MissingInputError, UserError

_XZ_MEMORY = 1 << 30
_FED = {"gz": 1 << 15, "xz": 1 << 12, "zst": 1 << 11}
"""Compressed bytes taken at a time. The formats blow up 1,032, some 7,000 and 32,768 times at most."""
_BUFFER = 1 << 20


def open_source(source: Source) -> IO[bytes]:
    """The unpacked bytes of a source, buffered; seekable where nothing is packed. MissingInputError where it cannot be
    opened; reading raises DataError for damage."""
    raw = _open(source.address)
    if not source.packing:
        return raw
    return io.BufferedReader(_Unpacked(raw, source), _BUFFER)


def _open(address: str) -> IO[bytes]:
    if address == STDIN:
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb", _BUFFER)
    try:
        if is_remote(address):
            system, path = file_system(address)
            opened: IO[bytes] = system.open(path, "rb")
            return opened
        return open(address, "rb", _BUFFER)
    except OSError as error:
        raise MissingInputError(f"{address} cannot be opened: {error.strerror or error}") from None


class _Unpacked(io.RawIOBase):
    """What a packed stream holds. Files may be several packed ones end to end."""

    def __init__(self, raw: IO[bytes], source: Source) -> None:
        self._raw, self._source = raw, source
        self._make, self._errors = _decompressor(source)
        self._decompressor: Any | None = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not len(self._output):
            if not self._fill():
                return 0
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _fill(self) -> bool:
        """Unpacks a little more; False at the end."""
        self._input = self._input or self._raw.read(_FED[self._source.packing])
        if self._decompressor is None:
            if self._source.packing == "gz":
                self._input = self._input.lstrip(b"\0")  # tapes and disks fill up with zeros
            if not self._input:
                return False
            self._decompressor = self._make()
        elif not self._input:
            raise DataError(f"{self._source.address} is truncated: it ends within its compressed data; fetch it again")
        try:
            self._output = memoryview(self._decompressor.decompress(self._input))
        except self._errors as error:
            raise DataError(
                f"{self._source.address} cannot be unpacked: {error}; fetch it again, or rename it if it is no "
                f".{self._source.packing} file"
            ) from None
        self._input = b""
        if self._decompressor.eof:
            self._input, self._decompressor = self._decompressor.unused_data, None
        return True


def _decompressor(source: Source) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """What makes a decompressor, and the errors it raises for damage."""
    if source.packing == "xz":
        return lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY), (lzma.LZMAError, EOFError)
    if source.packing == "zst":
        try:
            zstandard = import_module("zstandard")
        except ImportError:
            raise UserError(f"{source.address}: .zst needs zstandard; pip install 'megaswitch[data]'") from None
        return lambda: zstandard.ZstdDecompressor().decompressobj(), (zstandard.ZstdError,)
    try:
        fast = import_module("isal.isal_zlib")  # three times zlib's speed
    except ImportError:
        return lambda: zlib.decompressobj(wbits=31), (zlib.error,)
    return lambda: fast.decompressobj(wbits=31), (fast.error,)
