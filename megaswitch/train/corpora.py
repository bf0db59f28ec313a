"""The splits of a run's corpora."""

import logging
from typing import Literal

from megaswitch.data.dataset import SpanCorruptionDataset, open_split
from megaswitch.data.spans import NUM_SENTINELS
from megaswitch.data.split import parse_split
from megaswitch.train.config import RunConfig
from megaswitch.utils.errors import DataError, MissingInputError

log = logging.getLogger(__name__)


def open_data(config: RunConfig, split: Literal["train", "valid"]) -> SpanCorruptionDataset:
    """One split of the run's corpora; training is endless, validation passes once."""
    if not config.data.train and not (split == "valid" and config.data.valid):
        raise MissingInputError("data.train is not set; give the prefix of a corpus that data_prep/preprocess.py wrote")
    return open_split(
        config.data,
        split,
        encoder_length=config.model.encoder_length,
        decoder_length=config.model.decoder_length,
        vocab_size=config.model.vocab_size,
        seed=config.train.seed,
        repeat=split == "train",
    )


def open_validation(config: RunConfig) -> SpanCorruptionDataset | None:
    """The validation set of a training run; None when none is set apart, or (said loudly) when the documents that
    `data.split` sets apart of a small corpus do not fill one sample."""
    if config.data.valid:
        return open_data(config, "valid")
    if parse_split(config.data.split)[1] == 0:
        return None
    try:
        return open_data(config, "valid")
    except DataError as error:
        log.warning("training without validation: %s", error)
        return None


def lowest_sentinel(source: SpanCorruptionDataset) -> int:
    """The id from which on targets are sentinels."""
    return source.plan.first_sentinel + 1 - NUM_SENTINELS
