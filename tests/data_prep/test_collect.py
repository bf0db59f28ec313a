"""Collecting documentation: nothing is imported, each text once, order fixed, enough of it on any machine."""

import json
import subprocess
import sys

import orjson

from megaswitch.data.prep.collect import (
    SHORTEST,
    collect,
    documentation_files,
    documentation_roots,
    main,
    texts_of_file,
)

LONG = "This sentence is repeated so that the text is long enough to count as one. " * 2


PYTHON = f'''"""Module. {LONG}"""
class C:
    """Class. {LONG}

    Plain.
        Indented.
    """
    def f(self):
        "short"
        async def g():
            """Inner. {LONG}"""
raise SystemExit("imported!")
'''

HEADER = f"""// Copyright. {LONG}

/**
 * Block. {LONG}
 * Second line.
 */
int x; // short
// aten::something.out({", Tensor other" * 9}) -> Tensor
int z;
  /// Slashes. {LONG}
  /// More.
int y;
"""


def test_docstrings_of_a_file(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(PYTHON)
    found = {where: text for text, where in texts_of_file(path)}
    assert list(found) == ["", "C", "C.f.g"]
    assert found["C"].endswith("\n\nPlain.\n    Indented.") and found["C.f.g"].startswith("Inner.")


def test_comments_of_a_header(tmp_path):
    path = tmp_path / "h.h"
    path.write_text(HEADER)
    found = [text for text, _ in texts_of_file(path)]
    assert [text.split(".")[0] for text in found] == ["Block", "Slashes"]
    assert found[0].endswith("\nSecond line.") and found[1].endswith("\nMore.")


def test_files_that_cannot_be_read_hold_nothing(tmp_path):
    (tmp_path / "bad.py").write_bytes(b"def (:\n")
    (tmp_path / "binary.py").write_bytes(b"\x00\xff")
    for name in ("bad.py", "binary.py", "gone.py"):
        assert texts_of_file(tmp_path / name) == []


def test_each_text_once_in_fixed_order_for_any_number_of_workers(tmp_path):
    for name in ("b", "a", "test", "site-packages"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.py").write_text(f'"""Same. {LONG}"""\ndef f():\n    """Of {name}. {LONG}"""\n')
    roots = [("root", tmp_path)]
    found = list(collect(roots))
    assert [source for _, source in found] == ["root:a/x.py:", "root:a/x.py:f", "root:b/x.py:f"]
    assert found == list(collect(roots, workers=2))


def test_there_is_enough_text_without_the_whole():
    """A sixth of the files, and the rule of three: the whole must pass ten thousand."""
    roots = documentation_roots()
    assert [name for name, _ in roots] == ["python", "numpy", "torch"]
    texts = set()
    for _, root in roots:
        for path in documentation_files(root)[::6]:
            texts |= {text for text, _ in texts_of_file(path)}
    assert len(texts) > 10_000 / 6 and min(map(len, texts)) >= SHORTEST


def test_the_command_writes_one_object_a_line(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "x.py").write_text(f'"""Text. {LONG}"""\n')
    monkeypatch.setattr("megaswitch.data.prep.collect.documentation_roots", lambda: [("lib", tmp_path / "lib")])
    output = tmp_path / "out" / "docs.jsonl"
    assert main(["docs", "--output", str(output), "--workers", "1"]) == 0
    assert [orjson.loads(line) for line in output.read_bytes().splitlines()] == [
        {"text": f"Text. {LONG}".strip(), "source": "lib:x.py:"}
    ]
    assert main(["docs", "--output", str(tmp_path)]) == 64


def test_torch_is_found_but_not_loaded():
    code = (
        "import sys, json; from megaswitch.data.prep.collect import documentation_roots as r; n = [a for a, _ in r()]"
    )
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}; print(json.dumps([n, 'torch' in sys.modules]))"],
        capture_output=True,
        check=True,
    )
    assert json.loads(shown.stdout) == [["python", "numpy", "torch"], False]
