"""The record of a run on disk: config.toml and metrics.jsonl, written by the first rank."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import orjson

from megaswitch.config.documents import to_toml
from megaswitch.train.config import RunConfig
from megaswitch.utils.errors import CannotWriteError


def _replace(path: Path, data: bytes) -> None:
    """Write aside, then rename: a reader never sees half a file."""
    aside = path.with_name(f"{path.name}.tmp")
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


class Metrics:
    """metrics.jsonl: one line a step, numbers in full precision; lines after a resumed step are taken back."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [line for line in self._lines() if line["step"] <= first_step]
        _replace(self.path, b"".join(orjson.dumps(line) + b"\n" for line in kept))
        self._file: IO[bytes] = open(self.path, "ab")  # noqa: SIM115 - closed by close()

    def _lines(self) -> list[dict[str, float]]:
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_bytes().splitlines():
            try:
                found.append(orjson.loads(line))
            except orjson.JSONDecodeError:  # the end of a run that was killed while writing
                break
        return found

    def write(self, line: Mapping[str, float | int]) -> None:
        """Append one step."""
        self._file.write(orjson.dumps(dict(line)) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """No more lines."""
        self._file.close()


def open_folder(config: RunConfig) -> Path:
    """Make the run's folder and write the complete configuration into it."""
    folder = Path(config.run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "config.toml", to_toml(config).encode())
    except OSError as error:
        raise CannotWriteError(
            f"cannot write the run's folder {folder}: {error.strerror}; choose another with --run.dir"
        ) from error
    return folder
