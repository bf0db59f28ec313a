"""Every fault of the list has a test that exists, and README.md says which."""

import ast
from functools import cache
from pathlib import Path

import pytest
from faults.rows import ROWS, table

HERE = Path(__file__).parent


@cache
def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_all_sixty_are_there():
    assert [row.number for row in ROWS] == list(range(1, 61))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_its_tests_exist(row):
    assert row.tests
    for test in row.tests:
        file, _, name = test.partition("::")
        assert name in functions(HERE.parent / file), test


def test_every_test_of_a_fault_is_of_some_row():
    named = {test for row in ROWS for test in row.tests if test.startswith("faults/")}
    ours = {
        f"faults/{path.name}::{name}"
        for path in HERE.glob("test_*.py")
        if path.name not in ("test_rows.py", "test_start.py")
        for name in functions(path)
        if name.startswith("test_")
    }
    assert ours - named == {"faults/test_steps.py::test_checksums"}


def test_the_readme_has_the_table():
    assert table() in (HERE / "README.md").read_text(), "print(faults.rows.table()) gives the table"
