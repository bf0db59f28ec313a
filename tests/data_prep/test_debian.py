"""Debian's packages: text out of every format, pages beside their translations, licences kept; apt is a stand-in that
hands out packages made here."""

import gzip
import os
import shutil
import subprocess
import sys

import orjson
import pytest

from megaswitch.data.prep.collect import main
from megaswitch.data.prep.debian import language, pairs
from megaswitch.data.prep.strip import STRIPPERS, strip_file

HTML = """<html><head><title>No</title><style>x</style></head><body><nav>menu</nav><h1>A  title</h1>
<p>First <b>bold</b> &amp; plain.<p>Second<br>line</p><ul><li>item</li></ul><script>no()</script></body></html>"""
MALLARD = """<page xmlns="x"><info><credit><name>N</name></credit></info><title>Help</title><p>Press <key>A</key>
 &amp; wait.</p><list><item><p>one</p></item></list></page>"""
MANUAL = '''.\\" Copyright
.TH CAT 1 "2020"
.SH NAME
cat \\- print \\fIfiles\\fR
.PP
It\\(aqs a
.B bold
word.
'''
POD = "=head1 NAME\n\nperl - B<the> language C<< a->b >>\n\n=over 4\n\n=item one\n\nText.\n\n=cut\n"


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("html", HTML, [["A title", "First bold & plain.", "Second", "line", "item"]]),
        ("mallard", MALLARD, [["Help", "Press A & wait.", "one"]]),
        ("manual", MANUAL, [["NAME cat - print files", "It's a bold word."]]),
        ("pod", POD, [["NAME", "perl - the language a->b", "one", "Text."]]),
        ("plain", "one\ntwo\n\n\n three\n", [["one\ntwo", " three"]]),
        ("dictionary", "word\n   its  meaning\nother\n   too\n", [["word its meaning"], ["other too"]]),
        ("fortunes", "one\n-- a\n%\ntwo\n%\n", [["one\n-- a"], ["two"], [""]]),
    ],
)
def test_text_of_each_format(kind, content, expected):
    assert STRIPPERS[kind](content) == expected


def test_files_are_unpacked_and_decoded(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("cafe\u0301".encode()))
    (tmp_path / "b.html").write_bytes('<meta charset="iso-8859-2"><p>\u017elu\u0165'.encode("iso-8859-2"))
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"text")[:-5])
    assert strip_file(tmp_path / "a.txt.gz", "plain") == [["caf\u00e9"]]
    assert strip_file(tmp_path / "b.html", "html") == [["\u017elu\u0165"]]
    assert strip_file(tmp_path / "c.txt", "plain") == [["caf\u00e9"]]
    assert strip_file(tmp_path / "d.txt.gz", "plain") == [] == strip_file(tmp_path / "gone", "plain")


def test_one_name_for_each_language():
    names = {"en-US": "en", "C": "en", "de-DE": "de", "pt_BR": "pt-BR", "pt-PT": "pt", "zh_CN": "zh-CN"}
    names |= {"sr@latin": "sr-latin", "nb-NO": "nb", "vi": "vi"}
    assert {name: language(name) for name in names} == names


def test_pairs_are_of_pages_with_as_many_blocks():
    documents = {
        "en": {"a": [["one", "two", "x86"]], "b": [["one"]]},
        "de": {"a": [["eins", "zwei", "x86"]], "b": [["eins", "mehr"]], "c": [["nur"]]},
    }
    assert list(pairs(documents, "de")) == [("one", "eins"), ("two", "zwei")]


def build(folder, name, files, links=()):
    root = folder / f"{name}.tree"
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    for path, target in links:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: t\nDescription: t\n"
    )
    subprocess.run(["dpkg-deb", "-b", root, folder / f"{name}_1_all.deb"], check=True, capture_output=True)


def page(*words):
    return "".join(f"<p>{word} in a sentence that is long enough to stay, and more.</p>" for word in words).encode()


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """Packages made by dpkg-deb, and an apt that has these and no others."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb: not a Debian system")
    folder = tmp_path / "apt"
    folder.mkdir()
    doc = "usr/share/doc"
    book = f"{doc}/debian-handbook/html"
    files = {f"{book}/en-US/a.html": page("one", "two"), f"{book}/de-DE/a.html": page("eins", "zwei")}
    files |= {f"{book}/en-US/b.html": page("three"), f"{book}/de-DE/b.html": page("three")}
    build(folder, "debian-handbook", {**files, f"{doc}/debian-handbook/copyright": b"free"})
    build(folder, "manpages", {f"{doc}/manpages/copyright": b"also free", "usr/share/man/man7/a.7.gz": b"x"})
    manual = gzip.compress(b".SH NAME\nopen a file that is there, and say so when it is not\n")
    build(folder, "manpages-dev", {"usr/share/man/man2/open.2.gz": manual}, [(f"{doc}/manpages-dev", "manpages")])
    for version in ("5.9", "5.10"):
        build(folder, f"linux-doc-{version}", {f"{doc}/linux-doc-{version}/x.rst": b"The kernel's documentation " * 3})
    for command, body in (
        ("apt-cache", "import glob, os; [print(os.path.basename(p).split('_')[0]) for p in glob.glob(f'{F}/*.deb')]"),
        ("apt-get", "import glob, shutil, sys; [shutil.copy(p, '.') for p in glob.glob(f'{F}/{sys.argv[-1]}_*.deb')]"),
    ):
        (folder / command).write_text(f"#!{sys.executable}\nF = {str(folder)!r}\n{body}\n")
        (folder / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_packages_become_languages(apt, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["debian", "--output", str(output), "--workers", "2"]) == 0
    files = (path.relative_to(output) for path in output.rglob("*") if path.is_file())
    found = sorted(path.as_posix() for path in files if path.parts[0] != ".packages")
    assert found == [
        "licences/debian-handbook.txt",
        "licences/manpages-dev.txt",
        "licences/manpages.txt",
        "parallel/en-de.tsv",
        "summary.json",
        "text/de/debian-handbook.jsonl",
        "text/en/debian-handbook.jsonl",
        "text/en/linux-doc-5.10.jsonl",
        "text/en/manpages-dev.jsonl",
    ]
    german = [orjson.loads(line) for line in (output / "text/de/debian-handbook.jsonl").read_bytes().splitlines()]
    assert [(r["lang"], r["source"]) for r in german] == [("de", "debian-handbook/a.html")]  # b.html is English
    assert (output / "parallel/en-de.tsv").read_text().splitlines()[0].split("\t")[1].startswith("eins in")
    assert (output / "licences/manpages-dev.txt").read_text() == "also free"
    assert orjson.loads((output / "summary.json").read_bytes())["languages"]["de"]["pairs"] == 2
    err = capsys.readouterr().err
    assert "linux-doc-5.10 came without a file of its licence" in err and "left out" in err and "2 languages" in err
    before = {path: path.stat().st_mtime_ns for path in (output / ".packages").iterdir()}
    assert main(["debian", "--output", str(output), "--packages", "debian-handbook"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (output / ".packages").iterdir()} == before


def test_what_cannot_be_collected(apt, tmp_path, monkeypatch, capsys):
    assert main(["debian", "--output", str(tmp_path / "x"), "--packages", "nothing"]) == 64
    assert main(["debian", "--output", str(tmp_path / "x"), "--packages", "dict-gcide"]) == 66
    (apt / "apt-get").write_text("#!/bin/sh\necho no route >&2\nexit 100\n")
    assert main(["debian", "--output", str(tmp_path / "x"), "--packages", "manpages"]) == 66
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["debian", "--output", str(tmp_path / "x")]) == 64
    err = capsys.readouterr().err
    assert "apt-get update" in err and "no route" in err and "this needs Debian" in err
