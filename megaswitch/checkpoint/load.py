"""A model out of a checkpoint, whole, in one process."""

import torch
from torch import nn

from megaswitch.checkpoint.choose import choose, committed
from megaswitch.checkpoint.folders import folder_at
from megaswitch.checkpoint.format import MANIFEST, step_of
from megaswitch.checkpoint.places import Place, place
from megaswitch.checkpoint.reader import Reader
from megaswitch.config.documents import from_dict
from megaswitch.model.config import ModelConfig
from megaswitch.model.transformer import SwitchTransformer
from megaswitch.model.units import param_specs
from megaswitch.topology.config import LayoutConfig
from megaswitch.utils.errors import DataError, MissingInputError, UserError


def load(
    path: str | Place,
    layout: LayoutConfig | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SwitchTransformer:
    """The model of a checkpoint, whole, in this process and in evaluation mode.

    `path` is a checkpoint's folder (`.../checkpoints/step-00001000`, or what was imported), or a run's: then its
    newest checkpoint that verifies is taken, whatever layout wrote it. Nothing loaded can run code.

    Raises UserError for a `layout` of several processes, MissingInputError when there is no checkpoint, DataError
    when it is damaged or not of a model.
    """
    if layout is not None and layout.tp * layout.pp * layout.ep * layout.etp != 1:
        raise UserError(
            f"load gives a whole model in one process, not its parts over tp={layout.tp}, pp={layout.pp}, "
            f"ep={layout.ep}: leave out the layout, or train and evaluate in that layout with torchrun"
        )
    reader, config = open_model(path)
    params = {name: nn.Parameter(reader.read_all(f"weight/{name}", dtype).to(device)) for name in param_specs(config)}
    return SwitchTransformer(config, params).eval()


def open_model(path: str | Place) -> tuple[Reader, ModelConfig]:
    """The verified checkpoint at `path` (see `load`), and the configuration of its model."""
    reader = Reader(find_checkpoint(place(path)))
    saved = reader.state.get("config")
    model = saved.get("model") if isinstance(saved, dict) else None
    if not isinstance(model, dict):
        raise DataError(f"{reader.path} does not say which model it holds; it is no training checkpoint")
    # keys that were added since it was saved had, in effect, their defaults
    return reader, from_dict(ModelConfig, model, str(reader.path), complete=False)


def find_checkpoint(path: Place) -> Place:
    """`path` when it is a checkpoint's folder, else the newest below it that verifies: in the folder of a run, or of
    its checkpoints. MissingInputError when there is none, DataError when none verifies."""
    if MANIFEST in folder_at(path).sizes() or step_of(path.name) is not None:
        return path
    root = next((root for root in (path / "checkpoints", path) if committed(root)), None)
    if root is None:
        raise MissingInputError(
            f"{path} is no checkpoint, and none is below it; give the folder of one (.../checkpoints/step-...) "
            "or of a run"
        )
    found = choose(root, "auto")
    assert found is not None, "there is one, or choose says why not"
    return found
