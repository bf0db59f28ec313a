"""`megaswitch eval`: the validation set under a checkpoint, beside a unigram model of the same targets."""

import sys
from collections.abc import Mapping

import numpy as np
import orjson
from numpy.typing import NDArray

from megaswitch.checkpoint.choose import choose
from megaswitch.checkpoint.reader import Reader
from megaswitch.data.dataset import Dataset
from megaswitch.data.spans import EOS
from megaswitch.topology.start import cpu_group, find_place, process_group
from megaswitch.train.check import check
from megaswitch.train.config import RunConfig
from megaswitch.train.corpora import lowest_sentinel, open_sets_of
from megaswitch.train.evaluate import Evaluation, evaluate, num_samples
from megaswitch.train.loop import set_up_processor
from megaswitch.train.resume import checkpoint_root, restore_weights
from megaswitch.train.system import build
from megaswitch.utils.errors import MissingInputError
from megaswitch.utils.logging import setup
from megaswitch.utils.problem import refuse

_ROWS = 256


def unigram_nll(sources: Mapping[str, Dataset], samples: Mapping[str, int]) -> float:
    """Cross-entropy in nats per content target (neither EOS nor sentinel) of the first `samples` samples of each
    set under their own frequencies: the best that any model without context could reach on them."""
    counts: NDArray[np.int64] = np.zeros(max(source.first_sentinel for source in sources.values()) + 1, np.int64)
    for name, source in sources.items():
        for first in range(0, samples[name], _ROWS):
            targets = source.batch(first, min(_ROWS, samples[name] - first)).targets_BT
            content = targets[(targets > EOS) & (targets < lowest_sentinel(source))]
            counts += np.bincount(content, minlength=len(counts))
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())


def score(config: RunConfig) -> int:
    """Print the validation figures of a checkpoint, and one line of JSON last. Returns the exit code."""
    place = find_place(config.run.device)
    setup(place.rank, place.world)
    refuse(check(config, place.world))
    sources = open_sets_of(config)
    set_up_processor(config, place)
    with process_group(place, config.run.timeout):
        group = cpu_group(place, config.run.timeout)
        path = choose(checkpoint_root(config), config.checkpoint.resume, group)
        if path is None:
            raise MissingInputError(f"no checkpoint is below {checkpoint_root(config)}; name one by checkpoint.resume")
        start = Reader(path, verify=False)
        system = build(config, place, first_sentinel=lowest_sentinel(next(iter(sources.values()))), initialise=False)
        progress = restore_weights(system, start)
        result = evaluate(system, sources)
    if place.rank == 0:
        unigram = unigram_nll(sources, {name: num_samples(system, source) for name, source in sources.items()})
        _print(str(start.path), progress.step, result, unigram)
    return 0


def _print(path: str, step: int, result: Evaluation, unigram: float) -> None:
    lines = [
        f"checkpoint {path}, {result.samples} validation samples, {100 * result.dropped:.1f}% tokens dropped",
        f"negative log perplexity, all targets                 {-result.nll:.4f}",
        f"negative log perplexity, no sentinels and EOS        {-result.content_nll:.4f}",
        f"unigram model of the same targets                    {-unigram:.4f}",
    ]
    lines += [f"set {name:<16} {-part.nll:.4f}, content {-part.content_nll:.4f}" for name, part in result.sets.items()]
    figures: dict[str, object] = {"step": step, "samples": result.samples, "nll": result.nll}
    figures |= {"dropped": result.dropped, "content_nll": result.content_nll, "unigram_content_nll": unigram}
    if result.sets:
        figures["sets"] = {name: {"nll": s.nll, "content_nll": s.content_nll} for name, s in result.sets.items()}
    sys.stdout.write("\n".join(lines) + "\n" + orjson.dumps(figures).decode() + "\n")
