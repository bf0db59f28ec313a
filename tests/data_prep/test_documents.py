"""Lines to documents: every kind of bad line is told apart, counted and placed, and each policy does what it says."""

import pytest

from megaswitch.data.prep.documents import Chunk, Report, read_lines, read_texts
from megaswitch.utils.errors import DataError, MissingInputError, UserError

GOOD = b'{"text": "good"}'
BAD = {
    "invalid UTF-8": b'{"text": "a\xffb"}',
    "lone surrogate": b'{"text": "a\\ud800b"}',
    "bad JSON": b'{"text": "half',
    "not a JSON object": b'["text"]',
    "no field 'text'": b'{"Text": "a"}',
    "field 'text' is not a string": b'{"text": null}',
}
ALSO_BAD_JSON = [b'{"text": "a", "score": NaN}', b"[" * 100_000, b'{"text": "\x01"}', b"\xff", b"{'text': 'a'}"]


def texts(content, on_bad, name="x.jsonl", key="text"):
    from pathlib import Path

    report = Report()
    return list(read_texts(Chunk(Path(name), 1, content), key, on_bad, report)), report


@pytest.mark.parametrize("kind", BAD)
def test_each_kind_of_bad_line(kind):
    content = b"\n".join([GOOD, BAD[kind], GOOD])
    with pytest.raises(DataError, match=rf"x\.jsonl:2: {kind}; .*--on-bad skip"):
        texts(content, "refuse")
    found, report = texts(content, "skip")
    assert found == ["good", "good"] and report.kinds == {kind: 1} and report.places == [f"x.jsonl:2: {kind}"]
    found, report = texts(content, "replace")
    repaired = ["a\ufffdb"] if kind in ("invalid UTF-8", "lone surrogate") else []
    assert found == ["good", *repaired, "good"] and report.kinds == {kind: 1}


@pytest.mark.parametrize("line", ALSO_BAD_JSON)
def test_what_is_no_json(line):
    found, report = texts(line + b"\n" + GOOD, "skip")
    assert found == ["good"] and report.kinds == {"bad JSON": 1}


def test_empty_documents_are_counted_under_every_policy():
    content = b'{"text": ""}\n\n   \n{"text": " \\n\\t "}\n' + GOOD + b"\r\n"
    found, report = texts(content, "refuse")
    assert found == ["good"] and report.kinds == {"empty document": 4} and report.documents == 1
    assert report.places[1] == "x.jsonl:2: empty document"


def test_plain_text_is_a_document_a_line():
    found, report = texts(b"one\r\n\ntwo\n\xff three", "replace", "x.txt")
    assert found == ["one", "two", "\ufffd three"]
    assert report.kinds == {"empty document": 1, "invalid UTF-8": 1}


def test_surrogates_in_other_fields_do_no_harm():
    assert texts(b'{"text": "fine", "other": "\\ud800"}', "refuse")[0] == ["fine"]


def test_other_field():
    assert texts(b'{"body": "x", "text": 5}', "refuse", key="body")[0] == ["x"]


def test_first_five_places_in_order_across_chunks():
    whole = Report()
    for _ in range(4):
        whole.add(texts(b"\n".join([BAD["bad JSON"], GOOD, BAD["invalid UTF-8"]]), "skip")[1])
    assert whole.documents == 4 and whole.kinds == {"bad JSON": 4, "invalid UTF-8": 4}
    assert [place.split(":")[1] for place in whole.places] == ["1", "3", "1", "3", "1"]


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
def test_chunks_are_whole_lines_whatever_their_size(size, tmp_path):
    path, other = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(b"line %d\n" % i for i in range(1, 60)) + b"line 60")
    other.write_bytes(b"")
    found = []
    for chunk in read_lines([path, other], size):
        lines = chunk.content.removesuffix(b"\n").split(b"\n")
        assert [line.split()[1] for line in lines] == [b"%d" % (chunk.first_line + i) for i in range(len(lines))]
        found += lines
    assert found == [b"line %d" % i for i in range(1, 61)]


def test_inputs_that_are_none(tmp_path):
    with pytest.raises(MissingInputError, match=r"gone\.jsonl is missing"):
        list(read_lines([tmp_path / "gone.jsonl"]))
    (tmp_path / "x.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"x\.gz is neither \.jsonl"):
        list(read_lines([tmp_path / "x.gz"]))
