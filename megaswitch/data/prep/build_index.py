"""Builds ahead of a run what it would build at its start and at each epoch's."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from megaswitch.config.load import load
from megaswitch.data.dataset import Dataset
from megaswitch.data.opening import open_sets, open_split
from megaswitch.data.prep.command import Parser, positive, run, say
from megaswitch.data.split import parse_split
from megaswitch.model.presets import presets
from megaswitch.train.config import RunConfig
from megaswitch.utils.errors import MissingInputError


def build_index(config: RunConfig, epochs: int) -> dict[str, Dataset]:
    """Keeps the indexes of the first `epochs` epochs of the run's training corpora, and of its validation sets, in
    `data.index_dir` (or beside each corpus). Returns the datasets by name."""
    if not config.data.train:
        raise MissingInputError("data.train is not set; give the corpora of the run")
    model = config.model
    settings = {
        "encoder_length": model.encoder_length,
        "decoder_length": model.decoder_length,
        "vocab_size": model.vocab_size,
        "seed": config.train.seed,
        "objective": config.train.objective,
    }
    found = {"train": open_split(config.data, "train", **settings)}  # type: ignore[arg-type]
    if config.data.valid or parse_split(config.data.split)[1]:
        sets = open_sets(config.data, **settings)
        found |= {f"valid {name}".strip(): dataset for name, dataset in sets.items()}
    for name, dataset in found.items():
        started = time.perf_counter()
        dataset.prepare(epochs if name == "train" else 1)
        seconds = time.perf_counter() - started
        say(f"{name}: {len(dataset.members)} corpora, {dataset.num_samples} samples an epoch, {seconds:.1f} s")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(
        "Builds the indexes of a run ahead of it. Takes the run's own keys and files: what they depend on are data.*, "
        "the model's lengths, train.seed and train.objective.",
        "python data_prep/build_index.py --epochs 2 --config run.toml --data.index_dir=/scratch/index",
    )
    parser.add_argument("--epochs", type=positive, default=1, help="epochs of the training corpora (1)")
    options, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        config = load(RunConfig, presets(), rest, "build_index.py", "Builds indexes ahead.")
        build_index(config, options.epochs)

    return run(work, "what was whole is kept")
