"""A folder of Hugging Face, read without trust: config.json, and safetensors in one file or several.

Nothing in it can run code; pickled weights are refused.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megaswitch.checkpoint.format import SAFETENSORS_NAMES
from megaswitch.utils.errors import DataError, MissingInputError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
_MOST_JSON = 1 << 28
_MOST_OPEN = 2
_FLOATS = {name: dtype for dtype, name in SAFETENSORS_NAMES.items() if dtype.is_floating_point}
_OTHERS = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


class Folder:
    """The tensors of a folder by name, each read when it is asked for.

    Raises MissingInputError when a file is not there, DataError when one cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise MissingInputError(f"{path} is no folder; give one with {CONFIG} and {WEIGHTS}")
        self.config = _read_json(path / CONFIG)
        self._file_of: dict[str, str] = {}
        self._open: OrderedDict[str, Any] = OrderedDict()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        index = _index(path)
        for file in sorted(set(index.values())) or [WEIGHTS]:
            self._look_into(file)
        lost = next((name for name, file in index.items() if self._file_of.get(name) != file), None)
        if lost is not None:
            raise DataError(f"{path / index[lost]} does not hold {lost}, as {INDEX} says it does")

    def read(self, name: str) -> Tensor:
        """A tensor, mapped from its file."""
        try:
            tensor: Tensor = self._file(self._file_of[name]).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{self.path / self._file_of[name]}: cannot read {name}: {error}") from None
        return tensor

    def _look_into(self, file: str) -> None:
        opened = self._file(file)
        for name in opened.keys():  # noqa: SIM118 - it is no dictionary
            if name in self._file_of:
                raise DataError(f"{self.path}: {name} is in {self._file_of[name]} and in {file}")
            part = opened.get_slice(name)
            if part.get_dtype() not in _FLOATS:
                raise DataError(
                    f"{self.path / file}: {name} is {part.get_dtype()}; weights of {', '.join(_FLOATS)} can be "
                    "imported, quantized ones cannot"
                )
            self._file_of[name] = file
            self.shapes[name], self.dtypes[name] = tuple(part.get_shape()), _FLOATS[part.get_dtype()]

    def _file(self, name: str) -> Any:
        if name not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._open.popitem(last=False)
            try:
                self._open[name] = safe_open(str(self.path / name), framework="pt")
            except (SafetensorError, OSError) as error:
                raise DataError(f"{self.path / name}: is no whole safetensors file: {error}") from None
        return self._open[name]


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON:
            raise DataError(f"{path}: larger than {_MOST_JSON} bytes, so it is not what its name says")
        found = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingInputError(f"{path} is not there; a folder that save_pretrained wrote has it") from None
    except OSError as error:
        raise MissingInputError(f"{path} cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}: is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds no object")
    return found


def _index(path: Path) -> dict[str, str]:
    """File of each tensor; empty when all are in one file."""
    if not (path / INDEX).exists():
        _need_weights(path)
        return {}
    found = _read_json(path / INDEX).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise DataError(f"{path / INDEX}: has no weight_map")
    for file in set(map(str, found.values())):
        # A plain name: no path, no parent folder, nothing that leads elsewhere.
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise DataError(f"{path / INDEX}: {file[:80]!r} is no name of a safetensors file beside it")
        if not (path / file).is_file():
            raise MissingInputError(f"{path / file} is not there, though {INDEX} names it; download it again")
    return {str(name): str(file) for name, file in found.items()}


def _need_weights(path: Path) -> None:
    if (path / WEIGHTS).is_file():
        return
    other = next((file.name for pattern in _OTHERS for file in sorted(path.glob(pattern))), None)
    if other is None:
        raise MissingInputError(f"neither {WEIGHTS} nor {INDEX} is in {path}")
    raise DataError(
        f"{path / other} is not read: formats other than safetensors can run code when they are opened, or need "
        "their own library. If you trust the file, open the folder with transformers (from_pretrained) and write it "
        "anew with save_pretrained, which makes safetensors"
    )
