"""Corpora of any content for the tests of the data tower."""

import numpy as np
import pytest

from megaswitch.data.layout import dtype_for
from megaswitch.data.sidecar import TokenizerFacts
from megaswitch.data.writer import IndexedWriter


@pytest.fixture
def facts():
    """A tokenizer that exists by its facts alone: 900 pieces, 1,000 ids."""
    return TokenizerFacts("f" * 32, 900)


@pytest.fixture
def make_corpus(tmp_path, facts):
    """Writes documents (lists of ids) as a corpus and returns its prefix."""

    def make(documents, name="corpus", tokenizer=facts, dtype=None):
        prefix = str(tmp_path / name)
        with IndexedWriter(prefix, dtype or dtype_for(1000)) as writer:
            for ids in documents:
                writer.add_document(ids)
            writer.finish(tokenizer)
        return prefix

    return make


@pytest.fixture
def random_documents():
    """Documents of random length whose tokens are all different as pairs (document, place) would be."""

    def make(count, longest=40, seed=0, low=3, high=900):
        rng = np.random.default_rng(seed)
        return [rng.integers(low, high, rng.integers(1, longest)).tolist() for _ in range(count)]

    return make


@pytest.fixture
def without_extension(monkeypatch):
    """The numpy twins answer everywhere."""
    for module in ("rng", "index", "parts", "blend"):
        monkeypatch.setattr(f"megaswitch.data.{module}.native", lambda: None)
