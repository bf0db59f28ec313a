"""A checkpoint as a folder that transformers loads, written one tensor (of experts, one expert) at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from megaswitch.checkpoint.hugging_face.describe import check_expressible, their_config
from megaswitch.checkpoint.hugging_face.folder import CONFIG, GENERATION, INDEX, WEIGHTS
from megaswitch.checkpoint.hugging_face.names import TABLES, family_of, their_names, transposed
from megaswitch.checkpoint.hugging_face.stream import MOST_FILE_BYTES, into_files, new_folder, write_json
from megaswitch.checkpoint.load import open_model
from megaswitch.checkpoint.reader import Reader
from megaswitch.checkpoint.shard import Pending, write_stream
from megaswitch.model.config import ModelConfig
from megaswitch.model.units import param_specs
from megaswitch.params.boxes import Box
from megaswitch.params.spec import ParamSpec
from megaswitch.utils.errors import DataError


@dataclass(frozen=True)
class Exported:
    """What was exported, and what is worth telling of it."""

    model: ModelConfig
    files: int
    notes: tuple[str, ...]


def export_model(
    source: Path, target: Path, slots: int | None = None, most_file_bytes: int = MOST_FILE_BYTES
) -> Exported:
    """Write the model of a checkpoint (or of a run's newest) as the folder `target`, in the stored dtypes.

    `slots` is the expert_capacity to write; None takes the model's own. Raises UserError with every reason why
    the model cannot be expressed over there, DataError when the checkpoint is damaged, CannotWriteError when
    `target` is there already or cannot be written; then nothing is left behind.
    """
    reader, model = open_model(source)
    notes = check_expressible(model, slots)
    tensors = list(_tensors(reader, model))
    with new_folder(target) as aside:
        files = into_files(tensors, most_file_bytes)
        names = [WEIGHTS] if len(files) == 1 else [_file_name(i, len(files)) for i in range(len(files))]
        for name, members in zip(names, files, strict=True):
            write_stream(aside / name, members)
        if len(files) > 1:
            where = {t.name: name for name, members in zip(names, files, strict=True) for t in members}
            size = sum(t.num_bytes for t in tensors)
            write_json(aside / INDEX, {"metadata": {"total_size": size}, "weight_map": where})
        dtype = str(tensors[0].dtype).removeprefix("torch.")
        write_json(aside / CONFIG, their_config(model, slots, dtype))
        ids = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
        write_json(aside / GENERATION, ids)
    return Exported(model, len(files), notes)


def _file_name(index: int, count: int) -> str:
    stem, _, ending = WEIGHTS.partition(".")
    return f"{stem}-{index + 1:05d}-of-{count:05d}.{ending}"


def _tensors(reader: Reader, model: ModelConfig) -> Iterator[Pending]:
    """Their tensors in the order of ours."""
    family = family_of(model)
    for spec in param_specs(model).values():
        stored = f"weight/{spec.name}"
        info = reader.tensors.get(stored)
        if info is None or info.shape != spec.shape:
            found = "missing" if info is None else f"of shape {list(info.shape)}, not {list(spec.shape)}"
            raise DataError(f"{reader.path}: {stored} is {found}; the checkpoint is not of the model that it names")
        names = their_names(spec.name, model, family)
        if spec.name == "embedding" and family == "switch_transformers" and not model.tied_embeddings:
            names = list(TABLES)  # transformers makes three tables of an untied one
        inner = spec.shape[1:] if spec.expert else spec.shape
        shape = tuple(reversed(inner)) if transposed(spec.name) else inner
        for number, name in enumerate(names):
            yield Pending(name, info.dtype, shape, partial(_make, reader, spec, number if spec.expert else 0))


def _make(reader: Reader, spec: ParamSpec, expert: int) -> Tensor:
    if spec.expert:
        inner = spec.shape[1:]
        ours = reader.read(f"weight/{spec.name}", Box((expert, *(0 for _ in inner)), (1, *inner)))[0]
    else:
        ours = reader.read_all(f"weight/{spec.name}")
    return ours.t() if transposed(spec.name) else ours
