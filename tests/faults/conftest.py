"""A corpus for all, and runs that nothing happens to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.harness import run, small_run, weights
from train.corpus import write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, corpus) -> Callable[..., dict[str, torch.Tensor]]:
    """`undisturbed(2, ep=2)`: the tensors at the end of `small_run` on 2 ranks to which nothing happened."""
    known: dict[Any, dict[str, torch.Tensor]] = {}

    def get(n: int, **layout: Any) -> dict[str, torch.Tensor]:
        key = (n, *sorted(layout.items()))
        if key not in known:
            config = small_run(tmp_path_factory.mktemp("undisturbed"), corpus, every=0, **layout)
            codes, said = run(n, config)
            assert codes == [0] * n, said
            known[key] = weights(config)
        return known[key]

    return get
