"""Files travel both ways between this package and Megatron-LM, byte for byte; for a checkout named by MEGATRON_DIR."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.writer import IndexedWriter

MEGATRON = os.environ.get("MEGATRON_DIR", "")

THEIRS = """
import json, sys, types
import numpy, torch
for name in ("megatron", "megatron.core", "megatron.core.datasets"):
    # Their folders without their __init__, which wants a GPU's libraries that these files do not.
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [f"{sys.argv[1]}/{name.replace('.', '/')}"]
import megatron.core.parallel_state  # before what imports it in a circle
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
ours, theirs, dtype, documents = sys.argv[2], sys.argv[3], getattr(numpy, sys.argv[4]), json.loads(sys.argv[5])
builder = IndexedDatasetBuilder(theirs + ".bin", dtype=dtype)
for sequences in documents:
    ids = [token for sequence in sequences for token in sequence]
    builder.add_document(torch.tensor(ids), [len(sequence) for sequence in sequences])
builder.finalize(theirs + ".idx")
for mmap in (True, False):
    data = IndexedDataset(ours, mmap=mmap)
    shown = [data[number].tolist() for number in range(len(data))]
    print(json.dumps([shown, data.document_indices.tolist(), data.sequence_lengths.tolist(), data[0].dtype.name]))
"""


@pytest.mark.skipif(not MEGATRON, reason="MEGATRON_DIR names no checkout of Megatron-LM")
@pytest.mark.parametrize(("dtype", "most"), [("uint16", 65_499), ("int32", 250_099)])
def test_files_travel_both_ways(dtype, most, tmp_path):
    rng = np.random.default_rng(0)
    documents = [
        [rng.integers(0, most + 1, rng.integers(1, 30)).tolist() for _ in range(rng.integers(1, 4))] for _ in range(50)
    ]
    with IndexedWriter(tmp_path / "ours", np.dtype(dtype)) as writer:
        for sequences in documents:
            ids = np.concatenate([np.array(sequence) for sequence in sequences])
            writer.add_documents(ids, np.array([len(s) for s in sequences]), np.array([len(sequences)]))
        writer.finish()
    arguments = [MEGATRON, str(tmp_path / "ours"), str(tmp_path / "theirs"), dtype, json.dumps(documents)]
    command = [sys.executable, "-c", THEIRS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    flat = [sequence for sequences in documents for sequence in sequences]
    borders = np.cumsum([0, *(len(sequences) for sequences in documents)]).tolist()
    for line in done.stdout.splitlines()[-2:]:
        assert json.loads(line) == [flat, borders, [len(sequence) for sequence in flat], dtype]
    for ending in ("bin", "idx"):
        assert (tmp_path / f"ours.{ending}").read_bytes() == (tmp_path / f"theirs.{ending}").read_bytes()
    corpus = IndexedCorpus(tmp_path / "theirs")
    shown = [corpus.document(number).tolist() for number in range(corpus.num_documents)]
    assert shown == [[token for sequence in sequences for token in sequence] for sequences in documents]
