"""The splits of a run's corpora."""

import logging
from typing import Any

import torch

from megaswitch.data.batch import Empty, empty
from megaswitch.data.dataset import Dataset
from megaswitch.data.opening import open_sets, open_split
from megaswitch.data.spans import NUM_SENTINELS
from megaswitch.data.split import parse_split
from megaswitch.train.config import RunConfig
from megaswitch.utils.errors import DataError, MissingInputError

log = logging.getLogger(__name__)


def _settings(config: RunConfig) -> dict[str, Any]:
    return {
        "encoder_length": config.model.encoder_length,
        "decoder_length": config.model.decoder_length,
        "vocab_size": config.model.vocab_size,
        "seed": config.train.seed,
        "objective": config.train.objective,
    }


def open_training(config: RunConfig) -> Dataset:
    """The training split of the run's corpora, endless."""
    if not config.data.train:
        raise MissingInputError("data.train is not set; give the prefix of a corpus that data_prep/preprocess.py wrote")
    return open_split(config.data, "train", **_settings(config))


def open_sets_of(config: RunConfig) -> dict[str, Dataset]:
    """The validation sets by name, of one pass each; "" where there is one without a name."""
    if not config.data.train and not config.data.valid:
        raise MissingInputError("neither data.valid nor data.train is set; give the prefix of a corpus")
    return open_sets(config.data, **_settings(config))


def open_validation(config: RunConfig) -> dict[str, Dataset]:
    """The validation sets of a training run; none when none is set apart, or (said loudly) when the documents that
    `data.split` sets apart of a small corpus do not fill one sample."""
    if config.data.valid:
        return open_sets_of(config)
    if parse_split(config.data.split)[1] == 0:
        return {}
    try:
        return open_sets_of(config)
    except DataError as error:
        log.warning("training without validation: %s", error)
        return {}


def lowest_sentinel(source: Dataset) -> int:
    """The id from which on targets are sentinels."""
    return source.first_sentinel + 1 - NUM_SENTINELS


def memory_for(device: torch.device) -> Empty:
    """Where batches for a device are made: page-locked memory for a GPU, which then copies them by itself."""
    if device.type != "cuda":
        return empty
    return lambda shape: torch.empty(shape, dtype=torch.int64, pin_memory=True).numpy()
