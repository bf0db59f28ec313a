"""What may be an input: files, folders, globs, addresses, standard input, packed or not; and what may not."""

import gzip
import lzma
import os
import random

import fsspec
import orjson
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megaswitch.data.prep import unpack
from megaswitch.data.prep.inputs import find
from megaswitch.data.prep.unpack import open_source
from megaswitch.utils.errors import DataError, MissingInputError, UserError

PACK = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.ZstdCompressor().compress}
LINES = b"".join(orjson.dumps({"text": f"document {i} of many"}) + b"\n" for i in range(20_000))


def names(*inputs, chosen=""):
    return [os.path.basename(source.address) for source in find([str(item) for item in inputs], chosen)]


@pytest.fixture
def tree(tmp_path):
    """A folder with files of several kinds."""
    for name in ("b.jsonl", "a.txt", "c.parquet", "d.jsonl.gz", "notes.md", ".hidden.jsonl", "deep/e.txt.zst"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(b"x")
    (tmp_path / "tree" / ".git").mkdir()
    (tmp_path / "tree" / ".git" / "f.jsonl").write_bytes(b"x")
    return tmp_path / "tree"


def test_folders_and_globs_hold_files_of_text_in_order(tree):
    assert names(tree) == ["a.txt", "b.jsonl", "c.parquet", "d.jsonl.gz", "e.txt.zst"]
    assert names(tree / "*.jsonl*") == ["b.jsonl", "d.jsonl.gz"]
    assert names(tree / "**" / "*.zst") == ["e.txt.zst"]
    assert names(tree / "b.jsonl", tree / "a.txt", tree / "b.jsonl") == ["b.jsonl", "a.txt", "b.jsonl"]


def test_a_name_with_stars_is_first_of_all_a_name(tmp_path):
    (tmp_path / "a[1].jsonl").write_bytes(b"x")
    assert names(tmp_path / "a[1].jsonl") == ["a[1].jsonl"]


def test_kinds(tree):
    found = {os.path.basename(s.address): (s.format, s.packing) for s in find([str(tree)])}
    assert found["d.jsonl.gz"] == ("jsonl", "gz") and found["e.txt.zst"] == ("text", "zst")
    (tree / "data").write_bytes(b"x")
    assert [(s.format, s.packing) for s in find([str(tree / "data")], "text")] == [("text", "")]


@pytest.mark.parametrize(
    ("item", "error", "says"),
    [
        ("gone.jsonl", MissingInputError, "gone.jsonl is missing"),
        ("tree/notes.md", UserError, "ends in none of .jsonl"),
        ("tree/*.md", MissingInputError, "holds no file of text"),
        ("tree/*.nothing", MissingInputError, "is missing"),
        ("tree/x.parquet.gz", UserError, "packed inside"),
        ("nosuch://bucket/x.jsonl", UserError, "install the fsspec package"),
    ],
)
def test_what_is_no_input(item, error, says, tree, monkeypatch):
    monkeypatch.chdir(tree.parent)
    (tree / "x.parquet.gz").write_bytes(b"x")
    with pytest.raises(error, match=says):
        find([item])


def test_standard_input_has_to_say_what_it_is():
    with pytest.raises(UserError, match="--format"):
        find(["-"])
    with pytest.raises(UserError, match="once only"):
        find(["-", "-"], "text")
    assert [(s.format, s.packing) for s in find(["-"], "jsonl")] == [("jsonl", "")]


@pytest.mark.parametrize("packing", PACK)
def test_packed_files(packing, tmp_path, read):
    path = tmp_path / f"x.jsonl.{packing}"
    path.write_bytes(PACK[packing](LINES[:300_000]) + PACK[packing](LINES[300_000:]))
    texts, summary = read(path)
    assert texts == [f"document {i} of many" for i in range(20_000)] and summary.documents == 20_000


@pytest.mark.parametrize("packing", PACK)
def test_truncated_and_damaged_files(packing, tmp_path, read):
    path, whole = tmp_path / f"x.jsonl.{packing}", PACK[packing](LINES)
    for cut in random.Random(0).sample(range(1, len(whole)), 12):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=rf"x\.jsonl\.{packing} (is truncated|cannot be unpacked)"):
            read(path)
    for wrong in (LINES, b"\0garbage" * 9, whole + b"more"):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=r"cannot be unpacked|is truncated"):
            read(path)
    path.write_bytes(b"")
    assert read(path)[0] == []


def test_without_the_fast_gzip_the_standard_one_serves(tmp_path, monkeypatch, read):
    real = unpack.import_module

    def without(name):
        if name.startswith("isal"):
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(unpack, "import_module", without)
    (tmp_path / "x.jsonl.gz").write_bytes(PACK["gz"](LINES))
    assert len(read(tmp_path / "x.jsonl.gz")[0]) == 20_000


def test_what_is_missing_is_told(tmp_path, monkeypatch, read):
    def without(name):
        raise ImportError(name)

    monkeypatch.setattr(unpack, "import_module", without)
    monkeypatch.setattr("megaswitch.data.prep.records.import_module", without)
    for name in ("x.jsonl.zst", "x.parquet"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(UserError, match=r"pip install 'megaswitch\[data\]'"):
            read(tmp_path / name)


@pytest.mark.parametrize("packing", PACK)
def test_a_bomb_is_unpacked_a_little_at_a_time(packing, tmp_path):
    """Hundreds of MB of zeros in some KB: never more than the bound of a step in memory."""
    size = 300 << 20
    packer = {
        "gz": lambda file: gzip.GzipFile(fileobj=file, mode="wb", compresslevel=9),
        "xz": lambda file: lzma.LZMAFile(file, "w", preset=1),  # noqa: SIM115
        "zst": lambda file: zstandard.ZstdCompressor(level=1).stream_writer(file, closefd=False),
    }[packing]
    path = tmp_path / f"x.txt.{packing}"
    with path.open("wb") as file, packer(file) as packed:
        for _ in range(size >> 20):
            packed.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    (source,) = find([str(path)])
    largest = total = 0
    with open_source(source) as stream:
        while piece := stream.read(1 << 16):
            total += len(piece)
            largest = max(largest, len(stream.raw._output))
    assert total == size and largest < 80 << 20


def test_addresses(read):
    system = fsspec.filesystem("memory")
    for name, content in (("b.jsonl", LINES), ("a.jsonl.gz", PACK["gz"](LINES)), ("x.md", b"x")):
        system.pipe_file(f"/crawl/{name}", content)
    try:
        assert [s.address for s in find(["memory://crawl"])] == ["memory:///crawl/a.jsonl.gz", "memory:///crawl/b.jsonl"]
        assert len(read("memory://crawl")[0]) == 40_000
        assert len(read("memory://crawl/*.gz")[0]) == 20_000
        assert len(read("memory://crawl/b.jsonl")[0]) == 20_000
        with pytest.raises(MissingInputError):
            find(["memory://crawl/gone.jsonl"])
    finally:
        system.rm("/crawl", recursive=True)


def table(path, rows, group=100):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)


def test_tables(tmp_path, read):
    texts = [f"row {i}" if i % 50 else None for i in range(1200)]
    rows = [{"text": text, "meta": {"lang": "de" if i % 2 else "en"}, "n": i} for i, text in enumerate(texts)]
    table(tmp_path / "x.parquet", rows)
    texts, summary = read(tmp_path / "x.parquet", on_bad="skip")
    assert texts == [f"row {i}" for i in range(1200) if i % 50]
    assert summary.places[1] == f"{tmp_path / 'x.parquet'}:row 51: field 'text' is not a string"
    chosen = read(tmp_path / "x.parquet", where=("meta.lang=de", "n>=1000"))[0]
    assert chosen == [f"row {i}" for i in range(1001, 1200, 2)]
    with pytest.raises(DataError, match=r"x\.parquet:row 1: field 'text'"):
        read(tmp_path / "x.parquet")


def test_damaged_tables(tmp_path, read):
    table(tmp_path / "x.parquet", [{"text": f"row {i} {i * i}"} for i in range(5000)])
    content = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="no sound parquet"):
        read(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes(content[:4] + bytes(2000) + content[2004:])
    with pytest.raises(DataError, match=r"x\.parquet"):
        read(tmp_path / "x.parquet")


def test_standard_input(tmp_path, read, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(LINES)
    with path.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert len(read("-", chosen="jsonl")[0]) == 20_000
