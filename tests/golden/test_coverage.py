"""Every key of every published vector is proven by a test that exists, and README.md says by which."""

import ast
import os
from pathlib import Path

import pytest
from golden.proofs import PROOFS, keys, table

HERE = Path(__file__).parent
VECTORS = Path(os.environ.get("MEGASWITCH_GOLDEN") or HERE / "vectors")
ALL_KEYS = list(keys(VECTORS))


def test_every_key_has_one_proof():
    found = {(file, key): [p.test for p in PROOFS if p.covers(file, key)] for file, key in ALL_KEYS}
    assert {place: tests for place, tests in found.items() if len(tests) != 1} == {}
    assert len(found) > 800


@pytest.mark.parametrize("proof", PROOFS, ids=lambda p: f"{p.files}:{p.test.split('::')[1]}")
def test_proofs_are_of_something_and_exist(proof):
    assert any(proof.covers(file, key) for file, key in ALL_KEYS)
    file, _, name = proof.test.partition("::")
    functions = [node.name for node in ast.parse((HERE / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert name in functions


def test_every_vector_file_is_listed_by_kind():
    assert {Path(file).suffix for file, _ in ALL_KEYS} == {".npz", ".json", ".safetensors"}


def test_the_readme_has_the_table():
    assert table() in (HERE / "README.md").read_text(), "print(golden.proofs.table()) gives the table"
