"""`megaswitch eval`: the validation set under a checkpoint, beside a unigram model of the same targets."""

import sys

import numpy as np
import orjson
from numpy.typing import NDArray

from megaswitch.checkpoint.choose import choose
from megaswitch.checkpoint.reader import Reader
from megaswitch.data.dataset import SpanCorruptionDataset
from megaswitch.data.spans import EOS
from megaswitch.topology.start import cpu_group, find_place, process_group
from megaswitch.train.check import check
from megaswitch.train.config import RunConfig
from megaswitch.train.corpora import lowest_sentinel, open_data
from megaswitch.train.evaluate import evaluate
from megaswitch.train.loop import set_threads
from megaswitch.train.resume import checkpoint_root, restore_weights
from megaswitch.train.system import build
from megaswitch.utils.errors import MissingInputError
from megaswitch.utils.logging import setup
from megaswitch.utils.problem import refuse

_ROWS = 256


def unigram_nll(source: SpanCorruptionDataset, samples: int) -> float:
    """Cross-entropy in nats per content target (neither EOS nor sentinel) of the first `samples` samples under
    their own frequencies: the best that any model without context could reach on them."""
    counts: NDArray[np.int64] = np.zeros(source.plan.first_sentinel + 1, np.int64)
    for first in range(0, samples, _ROWS):
        targets = source.batch(first, min(_ROWS, samples - first)).targets_BT
        content = targets[(targets > EOS) & (targets < lowest_sentinel(source))]
        counts += np.bincount(content, minlength=len(counts))
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())


def score(config: RunConfig) -> int:
    """Print the validation figures of a checkpoint, and one line of JSON last. Returns the exit code."""
    place = find_place(config.run.device)
    setup(place.rank, place.world)
    refuse(check(config, place.world))
    source = open_data(config, "valid")
    set_threads(config, place)
    with process_group(place, config.run.timeout):
        group = cpu_group(place, config.run.timeout)
        path = choose(checkpoint_root(config), config.checkpoint.resume, group)
        if path is None:
            raise MissingInputError(f"no checkpoint is below {checkpoint_root(config)}; name one by checkpoint.resume")
        start = Reader(path, verify=False)
        system = build(config, place, first_sentinel=lowest_sentinel(source), initialise=False)
        progress = restore_weights(system, start)
        result = evaluate(system, source)
    if place.rank == 0:
        unigram = unigram_nll(source, result.samples)
        figures = {"step": progress.step, "samples": result.samples, "nll": result.nll, "dropped": result.dropped}
        figures |= {"content_nll": result.content_nll, "unigram_content_nll": unigram}
        _print(str(start.path), figures)
    return 0


def _print(path: str, figures: dict[str, float]) -> None:
    lines = [
        f"checkpoint {path}, {figures['samples']} validation samples, {100 * figures['dropped']:.1f}% tokens dropped",
        f"negative log perplexity, all targets                 {-figures['nll']:.4f}",
        f"negative log perplexity, no sentinels and EOS        {-figures['content_nll']:.4f}",
        f"unigram model of the same targets                    {-figures['unigram_content_nll']:.4f}",
    ]
    sys.stdout.write("\n".join(lines) + "\n" + orjson.dumps(figures).decode() + "\n")
