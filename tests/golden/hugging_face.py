"""The `hf_tiny_*` folders as tests use them: imported through the tool, and their gradients as ours."""

import os
import runpy
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megaswitch.checkpoint.hugging_face.names import family_of, their_names, transposed
from megaswitch.model.config import ModelConfig
from megaswitch.model.units import param_specs

MODELS = ("nodrop", "drop", "allsparse_untied", "long", "t5_v10", "t5_v11")
SWITCH = tuple(name for name in MODELS if not name.startswith("t5"))
LOGITS, GRADIENTS = 2e-6, 1e-5  # max|a - b| / max|a|, float32
TOOL = Path(__file__).parents[2] / "tools" / "convert_hf.py"


def folder(name: str) -> Path:
    root = os.environ.get("MEGASWITCH_GOLDEN") or Path(__file__).parent / "vectors"
    return Path(root) / f"hf_tiny_{name}"


@cache
def arrays(name: str, file: str) -> dict[str, Tensor]:
    """The tensors of an .npz of a folder."""
    return {key: torch.from_numpy(value) for key, value in np.load(folder(name) / file).items()}


def convert(*arguments: object) -> int:
    """Runs the tool in this process; its exit code."""
    before, sys.argv = sys.argv, [str(TOOL), *map(str, arguments)]
    try:
        runpy.run_path(str(TOOL), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    raise AssertionError("the tool ended without an exit code")


def ours(theirs: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Gradients by our names from gradients by theirs; an expert that got no token has none: zeros."""
    found = {}
    for name, spec in param_specs(config).items():
        inner = spec.shape[1:] if spec.expert else spec.shape
        zeros = torch.zeros(tuple(reversed(inner)) if transposed(name) else inner)
        parts = [theirs.get(n, zeros) for n in their_names(name, config, family_of(config))]
        parts = [p.t() if transposed(name) else p for p in parts]
        found[name] = torch.stack(parts) if spec.expert else parts[0]
    return found


def far(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|a|."""
    return float((a - b).detach().abs().max() / a.abs().max())
