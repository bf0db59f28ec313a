"""A model out of a checkpoint, whole, in one process."""

from pathlib import Path

import torch
from torch import nn

from megaswitch.checkpoint.reader import Reader
from megaswitch.config.documents import from_dict
from megaswitch.model.config import ModelConfig
from megaswitch.model.transformer import SwitchTransformer
from megaswitch.model.units import param_specs
from megaswitch.utils.errors import DataError


def load(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> SwitchTransformer:
    """The model of a checkpoint folder (`.../checkpoints/step-00001000`), in evaluation mode.

    Nothing loaded can run code. Raises DataError when the folder is no whole checkpoint of a model.
    """
    reader = Reader(Path(path))
    saved = reader.state.get("config")
    model = saved.get("model") if isinstance(saved, dict) else None
    if not isinstance(model, dict):
        raise DataError(f"{path} does not say which model it holds; it is no training checkpoint")
    config = from_dict(ModelConfig, model, str(path))
    params = {
        name: nn.Parameter(reader.read_all(f"weight/{name}", dtype).to(device)) for name in param_specs(config)
    }
    return SwitchTransformer(config, params).eval()
