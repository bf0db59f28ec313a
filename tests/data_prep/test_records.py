"""Records of slices: however a file is cut, each record comes once, in order, with its line and byte."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaswitch.data.prep import records
from megaswitch.data.prep.documents import Reader, Reading
from megaswitch.data.prep.inputs import find
from megaswitch.data.prep.records import Slice, read_records
from megaswitch.data.prep.report import Report, Summary
from megaswitch.utils.errors import DataError

PIECES = [b"a", b"bb ", b"\n", b"\n\n", b" \n", b"\r\n", b"ccc dd", b"\xef\xbb\xbf"]
CONTENT = st.lists(st.sampled_from(PIECES), max_size=40)
MARK = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


def by_hand(content, unit):
    """(record, line, byte) of all records of a file that is small enough to be looked at as a whole."""
    skip = len(MARK) if content.startswith(MARK) else 0
    lines, found, byte = content[skip:].split(b"\n"), [], skip
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        found.append((line, number, byte))
        byte += len(line) + 1
    if unit == "line":
        return found
    paragraphs, open_one = [], False
    for line, number, byte in found:
        if not line.strip():
            open_one = False
        elif open_one:
            paragraphs[-1] = (paragraphs[-1][0] + b"\n" + line, *paragraphs[-1][1:])
        else:
            paragraphs.append((line, number, byte))
            open_one = True
    return paragraphs


@pytest.mark.parametrize("unit", ["line", "paragraph"])
@settings(max_examples=150, deadline=None)
@given(content=CONTENT, cuts=st.lists(st.integers(0, 99), max_size=4), read=st.sampled_from([1, 3, 7, 1 << 20]))
def test_slices_hold_each_record_once(unit, folder, content, cuts, read):
    content = b"".join(content)
    path = folder / "x.txt"
    path.write_bytes(content)
    (source,) = find([str(path)])
    edges = sorted({0, *(cut for cut in cuts if cut < len(content))})
    found, lines = [], 0
    before, records._READ = records._READ, read
    try:
        for start, stop in zip(edges, [*edges[1:], None], strict=True):
            taken = 0
            for block in read_records(Slice(source, start, stop), unit, 1 << 20):
                found += [(r, lines + block.place(i)[0], block.place(i)[1]) for i, r in enumerate(block.records)]
                taken += block.lines
            lines += taken
    finally:
        records._READ = before
    assert found == by_hand(content, unit)


@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
def test_a_record_that_is_too_long_is_never_in_memory(unit, folder):
    """The limit is 1,000 bytes, reads are of 100."""
    middle = b"x" * 5000 if unit == "line" else b"x" * 90 + b"\ny" * 3000
    content = b"one\n\n" + middle + b"\n\ntwo\n"
    (folder / "y.txt").write_bytes(content)
    (source,) = find([str(folder / "y.txt")])
    before, records._READ = records._READ, 100
    try:
        blocks = list(read_records(Slice(source), unit, 1000))
    finally:
        records._READ = before
    found = [(record, block.place(i)) for block in blocks for i, record in enumerate(block.records) if record != b""]
    last = (4 if unit == "line" else 3 + 3002, 5 + len(middle) + 2)
    shown = {
        "line": [(b"one", (1, 0)), (None, (3, 5)), (b"two", (5, last[1]))],
        "paragraph": [(b"one", (1, 0)), (None, (3, 5)), (b"two", (3005, last[1]))],
        "file": [(None, (1, 0))],
    }
    assert found == shown[unit]
    assert max(sum(len(r or b"") for r in block.records) for block in blocks) < 1200


def test_a_whole_file_is_a_document(folder, read):
    (folder / "w.txt").write_bytes(MARK + b"one\n\ntwo\n")
    assert read(folder / "w.txt", unit="file")[0] == ["one\n\ntwo\n"]
    assert read(folder / "w.txt", unit="paragraph")[0] == ["one", "two"]


def test_places_of_slices_are_those_of_the_file(folder):
    path = folder / "z.jsonl"
    lines = [b'{"text": "good %d"}' % i for i in range(100)]
    for bad in (3, 41, 42, 97):
        lines[bad] = b"half {"
    path.write_bytes(b"\n".join(lines))
    (source,) = find([str(path)])
    size = path.stat().st_size
    cuts = [0, size // 3, size // 2, None]
    summary = Summary()
    for start, stop in pairwise(cuts):
        report, part = Report(), Slice(source, start, stop)
        list(Reader(Reading(on_bad="skip"), report).texts(part))
        summary.add((part,), Report.from_dict(report.to_dict()))
        if start:  # refused where it stands, in a slice that does not know what was before it
            with pytest.raises(DataError, match=rf"z\.jsonl:{42 if start == cuts[1] else 98}:"):
                list(Reader(Reading(), Report()).texts(part))
    offsets = [sum(len(line) + 1 for line in lines[:n]) for n in (3, 41, 42, 97)]
    assert summary.places == [f"{path}:{n + 1}:{o}: bad JSON" for n, o in zip((3, 41, 42, 97), offsets, strict=True)]
    assert summary.documents == 96 and summary.kinds == {"bad JSON": 4}
