"""A Hugging Face folder as a checkpoint of weights, written one tensor (of experts, one expert) at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

import torch
from torch import Tensor

from megaswitch.checkpoint.format import JSON, shard_name
from megaswitch.checkpoint.hugging_face.folder import Folder
from megaswitch.checkpoint.hugging_face.names import HEAD, IGNORED, TABLES, their_names, transposed
from megaswitch.checkpoint.hugging_face.recognise import Recognised, recognise
from megaswitch.checkpoint.hugging_face.stream import MOST_FILE_BYTES, into_files, new_folder
from megaswitch.checkpoint.shard import Pending, write_stream
from megaswitch.checkpoint.store import assemble, write_manifest
from megaswitch.checkpoint.training import weights_only_state
from megaswitch.config.documents import to_dict
from megaswitch.model.config import ModelConfig
from megaswitch.model.units import param_specs
from megaswitch.params.boxes import Box
from megaswitch.params.spec import ParamSpec
from megaswitch.utils.errors import DataError


@dataclass(frozen=True)
class Imported:
    """What was imported, and what is worth telling of it."""

    model: ModelConfig
    tensors: int
    parameters: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """A slice of one of our tensors, and the tensor of theirs that it is."""

    spec: ParamSpec
    box: Box
    theirs: str
    dtype: torch.dtype

    @property
    def key(self) -> str:
        return f"weight/{self.spec.name}@{','.join(map(str, self.box.offset))}"

    @property
    def row(self) -> list[object]:
        """Its line of the manifest, as `assemble` reads it."""
        dtype = str(self.dtype).removeprefix("torch.")
        offset, shape = list(self.box.offset), list(self.box.shape)
        return [f"weight/{self.spec.name}", dtype, list(self.spec.shape), self.key, offset, shape]


def import_model(source: Path, target: Path, most_file_bytes: int = MOST_FILE_BYTES) -> Imported:
    """Write the model in the folder `source` as the checkpoint `target` (step 0, weights alone, dtypes as they are).

    Raises MissingInputError or DataError when the source cannot be used or expressed, CannotWriteError when
    `target` is there already or cannot be written; then nothing is left behind.
    """
    folder = Folder(source)
    found = recognise(folder)
    parts = _parts(folder, found)
    with new_folder(target) as aside:
        pending = [Pending(p.key, p.dtype, p.box.shape, partial(_make, folder, p)) for p in parts]
        by_key = {part.key: part for part in parts}
        written: list[dict[str, object]] = []
        for number, tensors in enumerate(into_files(pending, most_file_bytes)):
            info = write_stream(aside / shard_name(number), tensors)
            rows = [by_key[t.name].row for t in tensors]
            written.append({"name": info.name, "size": info.size, "hash": info.hash, "slices": rows})
        state: dict[str, JSON] = weights_only_state({"model": to_dict(found.model)})
        write_manifest(aside, assemble(0, state, written))
    return Imported(found.model, len(param_specs(found.model)), sum(p.box.size for p in parts), found.notes)


def _parts(folder: Folder, found: Recognised) -> list[_Part]:
    """Everything to write. DataError unless every tensor is there, of the right shape, and none is left over."""
    parts = [part for spec in param_specs(found.model).values() for part in _parts_of(folder, found, spec)]
    known = {part.theirs for part in parts} | {HEAD, *TABLES, *IGNORED}
    strange = sorted(folder.shapes.keys() - known)
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise DataError(f"{folder.path}: no place for {', '.join(strange[:3])}{more}; it is a model of another kind")
    return parts


def _parts_of(folder: Folder, found: Recognised, spec: ParamSpec) -> Iterator[_Part]:
    names = their_names(spec.name, found.model, found.family)
    names = [found.table] if spec.name == "embedding" else names
    inner = spec.shape[1:] if spec.expert else spec.shape
    expected = tuple(reversed(inner)) if transposed(spec.name) else inner
    for name in names:
        shape = folder.shapes.get(name)
        if shape != expected:
            trouble = "is missing" if shape is None else f"has shape {list(shape)}, not {list(expected)}"
            raise DataError(f"{folder.path}: {name} {trouble}; the folder holds no whole model of its kind")
    dtype = reduce(torch.promote_types, [folder.dtypes[name] for name in names])
    if not spec.expert:
        yield _Part(spec, Box((0,) * len(spec.shape), spec.shape), names[0], dtype)
        return
    for expert, name in enumerate(names):
        yield _Part(spec, Box((expert, *(0 for _ in inner)), (1, *inner)), name, dtype)


def _make(folder: Folder, part: _Part) -> Tensor:
    theirs = folder.read(part.theirs)
    ours = theirs.t() if transposed(part.spec.name) else theirs
    return ours.unsqueeze(0) if part.spec.expert else ours
