"""The splits of a run's corpora."""

from typing import Literal

from megaswitch.data.dataset import SpanCorruptionDataset, open_split
from megaswitch.data.spans import NUM_SENTINELS
from megaswitch.data.split import parse_split
from megaswitch.train.config import RunConfig
from megaswitch.utils.errors import MissingInputError


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


def wants_validation(config: RunConfig) -> bool:
    """Whether documents are set apart for validation."""
    return bool(config.data.valid) or parse_split(config.data.split)[1] > 0


def lowest_sentinel(source: SpanCorruptionDataset) -> int:
    """The id from which on targets are sentinels."""
    return source.plan.first_sentinel + 1 - NUM_SENTINELS
