"""Records to documents: every kind of bad record is told apart, counted and placed, each policy does what it says, and
conditions choose."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaswitch.data.prep.conditions import conditions
from megaswitch.data.prep.documents import Reader, Reading
from megaswitch.data.prep.inputs import find
from megaswitch.data.prep.records import Slice
from megaswitch.data.prep.report import Report
from megaswitch.data.prep.sentences import split_sentences
from megaswitch.utils.errors import DataError, UserError

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


@pytest.fixture
def texts(tmp_path, read):
    def texts(content, on_bad="refuse", name="x.jsonl", **options):
        (tmp_path / name).write_bytes(content)
        return read(tmp_path / name, on_bad=on_bad, **options)

    return texts


@pytest.mark.parametrize("kind", BAD)
def test_each_kind_of_bad_line(kind, texts, tmp_path):
    content = b"\n".join([GOOD, BAD[kind], GOOD])
    with pytest.raises(DataError, match=rf"x\.jsonl:2:17: {kind}; .*--on-bad skip"):
        texts(content)
    found, summary = texts(content, "skip")
    assert found == ["good", "good"] and summary.kinds == {kind: 1}
    assert summary.places == [f"{tmp_path / 'x.jsonl'}:2:17: {kind}"]
    found, summary = texts(content, "replace")
    repaired = ["a\ufffdb"] if kind in ("invalid UTF-8", "lone surrogate") else []
    assert found == ["good", *repaired, "good"] and summary.kinds == {kind: 1}


@pytest.mark.parametrize("line", ALSO_BAD_JSON)
def test_what_is_no_json(line, texts):
    found, summary = texts(line + b"\n" + GOOD, "skip")
    assert found == ["good"] and summary.kinds == {"bad JSON": 1}


def test_empty_documents_are_counted_and_may_be_refused(texts):
    content = b'{"text": ""}\n\n   \n{"text": " \\n\\t "}\n' + GOOD + b"\r\n"
    found, summary = texts(content)
    assert found == ["good"] and summary.kinds == {"empty document": 4} and summary.documents == 1
    assert summary.places[1].endswith("x.jsonl:2:13: empty document")
    with pytest.raises(DataError, match=r"x\.jsonl:1:0: empty document; .*--on-empty skip"):
        texts(content, on_empty="refuse")


def test_plain_text_is_a_document_a_line(texts):
    found, summary = texts(b"\xef\xbb\xbfone\r\n\ntwo\n\xff three", "replace", "x.txt")
    assert found == ["one", "two", "\ufffd three"]
    assert summary.kinds == {"empty document": 1, "invalid UTF-8": 1}


def test_documents_that_are_too_long(texts):
    content = b"\n".join([GOOD, b'{"text": "' + b"x" * 100 + b'"}', GOOD])
    with pytest.raises(DataError, match=r"x\.jsonl:2:17: longer than 50 bytes"):
        texts(content, max_bytes=50)
    for policy in ("skip", "replace"):
        found, summary = texts(content, policy, max_bytes=50)
        assert found == ["good", "good"] and summary.kinds == {"longer than 50 bytes": 1}


def test_flaws_in_other_fields_do_no_harm(texts):
    assert texts(b'{"text": "fine", "other": "\\ud800"}')[0] == ["fine"]


def test_other_fields_and_fields_within(texts):
    assert texts(b'{"body": "x", "text": 5}', key="body")[0] == ["x"]
    assert texts(b'{"page": {"body": "x"}, "page.head": "y"}', key="page.body")[0] == ["x"]
    assert texts(b'{"page": {"body": "x"}, "page.head": "y"}', key="page.head")[0] == ["y"]


def test_first_five_places_in_order(texts):
    content = b"\n".join([BAD["bad JSON"], GOOD, BAD["invalid UTF-8"]] * 4)
    summary = texts(content, "skip")[1]
    assert summary.documents == 4 and summary.kinds == {"bad JSON": 4, "invalid UTF-8": 4}
    assert [place.split(":")[-3] for place in summary.places] == ["1", "3", "4", "6", "7"]


def lines(*objects):
    return b"".join(orjson.dumps(item) + b"\n" for item in objects)


def test_conditions_choose(texts):
    content = lines(
        {"text": "a", "lang": "de", "score": 0.9},
        {"text": "b", "lang": "en", "score": 0.4, "ok": True},
        {"text": "c", "meta": {"lang": "fr"}},
        {"text": "d", "lang": "de", "score": "high"},
    )
    chosen = {
        ("lang=de",): "ad",
        ("lang=de,en",): "abd",
        ("lang!=de",): "bc",
        ("score>=0.5",): "a",
        ("score<=0.4",): "b",
        ("lang=de", "score>=0"): "a",
        ("meta.lang=fr",): "c",
        ("ok=true",): "b",
    }
    for where, expected in chosen.items():
        found, summary = texts(content, where=where)
        assert "".join(found) == expected and summary.kinds.get("left out by --where", 0) == 4 - len(found)


@pytest.mark.parametrize("text", ["lang", "=de", "score>=high", ""])
def test_what_is_no_condition(text):
    with pytest.raises(UserError, match="--where"):
        conditions((text,))


def test_minimal_filters(texts):
    content = lines(*({"text": text} for text in ("short", "just right", "just right", "far too long " * 9)))
    found, summary = texts(content, min_chars=6, max_chars=20, dedup=True)
    kinds = {"shorter than --min-chars": 1, "repeated within its shard": 1, "longer than --max-chars": 1}
    assert found == ["just right"] and summary.kinds == kinds and summary.places == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.text(alphabet=st.characters(codec="utf-8"), max_size=20).map(lambda text: orjson.dumps({"text": text})),
        ),
        max_size=8,
    )
)
def test_nothing_on_the_web_stops_a_reader_that_skips(tmp_path_factory, records):
    """Every non-empty document of well-formed lines comes out as it went in, whatever stands between them."""
    path = tmp_path_factory.mktemp("web") / "x.jsonl"
    path.write_bytes(b"\n".join(records))
    (source,) = find([str(path)])
    report = Report()
    found = [text for block in Reader(Reading(on_bad="skip"), report).texts(Slice(source)) for text in block]
    wanted = []
    for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        text = record.get("text") if isinstance(record, dict) else None
        if isinstance(text, str) and text.strip():
            wanted.append(text)
    assert found == wanted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Version 3.11 is out, e.g. here. Next", ["Version 3.11 is out, e.g. here.", "Next"]),
        ('He said "Go." Then he went.', ['He said "Go."', "Then he went."]),
        ("\u4eca\u65e5\u306f\u3002\u660e\u65e5\u306f\uff01", ["\u4eca\u65e5\u306f\u3002", "\u660e\u65e5\u306f\uff01"]),
        ("a line\nanother line\n\n", ["a line", "another line"]),
        ("  ", []),
    ],
)
def test_sentences(text, expected):
    assert split_sentences(text) == expected


@given(st.text(alphabet="aB .!?\u3002\"\n", max_size=60))
def test_sentences_lose_nothing_but_space(text):
    joined = "".join("".join(split_sentences(text)).split())
    assert joined == "".join(text.split())
