"""How tensors are spread over files, and folders that exist whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from megaswitch.checkpoint.folders import folder_at
from megaswitch.checkpoint.shard import Pending
from megaswitch.checkpoint.store import commit
from megaswitch.utils.errors import CannotWriteError

MOST_FILE_BYTES = 5 * 10**9
"""Files are closed before they grow beyond this; a larger tensor has a file of its own."""


def into_files(tensors: Iterable[Pending], most_bytes: int) -> list[list[Pending]]:
    """Consecutive tensors, file by file."""
    files: list[list[Pending]] = []
    size = 0
    for tensor in tensors:
        if not files or size + tensor.num_bytes > most_bytes:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.num_bytes
    return files


def write_json(path: Path, value: object) -> None:
    """Writes a small file of indented JSON."""
    with open(path, "xb") as file:
        file.write(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when the block ends, and is gone when it fails.

    CannotWriteError when something is at `target` already, or nothing can be written there.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CannotWriteError(f"{target} is there already; choose another name, or move it away")
    aside = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        yield aside
        folder_at(aside).settle()
        commit(aside, target)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CannotWriteError(f"cannot write {target}: {error.strerror or error}; choose another folder") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
