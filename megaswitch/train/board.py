"""What TensorBoard shows of a run: scalars, and pictures of the experts' load."""

from collections.abc import Mapping
from math import log
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from megaswitch.model.record import LayerRecord, StepRecord

_CELL = 12  # pixels of one expert's square, at least


def load_shares(layer: LayerRecord) -> NDArray[np.float64]:
    """Share of the routed tokens that wanted each expert, [experts]; sums to 1 (0 where nothing was routed)."""
    load = np.asarray(layer.load, np.float64)
    total = load.sum()
    return load / total if total else load


def load_entropy(shares: NDArray[np.float64]) -> float:
    """Entropy of the load over log(experts): 1 when all experts are wanted alike."""
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum() / log(len(shares))) if len(shares) > 1 else 1.0


def load_picture(layers: Mapping[str, LayerRecord]) -> NDArray[np.uint8]:
    """[height, width, 3]: a row a Switch layer, a column an expert; black to yellow is 0 to 3 times the even share."""
    from matplotlib import colormaps  # here, for it is slow to import and needed for pictures only

    shares = np.stack([load_shares(layer) for layer in layers.values()])
    scaled = np.clip(shares * shares.shape[1] / 3.0, 0.0, 1.0)
    image = colormaps["inferno"](scaled)[..., :3]
    cell = max(1, min(_CELL, 1536 // shares.shape[1]))
    image = image.repeat(_CELL, 0).repeat(cell, 1)
    return np.asarray(image * 255, np.uint8)


class Board:
    """Writes events below `folder`; a run that resumes hides what came after its checkpoint."""

    def __init__(self, folder: Path, first_step: int) -> None:
        purge = first_step + 1 if first_step else None
        self.writer = SummaryWriter(str(folder), purge_step=purge)  # type: ignore[no-untyped-call]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Plain numbers by tag."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)  # type: ignore[no-untyped-call]

    def layers(self, step: int, record: StepRecord) -> None:
        """Aux loss, dropped share, expert load and router entropy of each Switch layer."""
        for name, layer in record.layers.items():
            shares, routed = load_shares(layer), max(layer.routed, 1.0)
            even = 1.0 / len(shares)
            self.scalars(
                step,
                {
                    f"aux_loss/{name}": layer.aux,
                    f"dropped/{name}": layer.dropped / routed,
                    f"router_entropy/{name}": layer.entropy / routed,
                    f"load_min/{name}": float(shares.min() / even),
                    f"load_max/{name}": float(shares.max() / even),
                    f"load_entropy/{name}": load_entropy(shares),
                },
            )

    def picture(self, step: int, record: StepRecord) -> None:
        """The heat map of load over layers and experts."""
        if record.layers:
            image = load_picture(record.layers)
            self.writer.add_image("expert_load", image, step, dataformats="HWC")  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Write out what is left."""
        self.writer.close()  # type: ignore[no-untyped-call]
