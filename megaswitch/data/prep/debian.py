"""Collects real text from Debian's documentation packages, by the sources that apt is set up for on this machine.

What comes is English by the hundred MB and some guides in dozens of languages, whose pages and paragraphs correspond.
Nothing is installed: packages are fetched, unpacked beside the output, stripped, and their licences kept.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import orjson

from megaswitch.data.prep.command import progress, say
from megaswitch.data.prep.strip import Document, strip_file
from megaswitch.data.writer import write_files
from megaswitch.utils.errors import MissingInputError, UserError

SHORTEST = 40
"""Characters below which a document is left out."""

_ENGLISH = "en"
_MOSTLY = 0.5  # share of blocks that are the English ones above which a page counts as not translated


@dataclass(frozen=True)
class Rule:
    """What of a package is text. `package` may be a pattern, of which the last name (by version) is taken; `path`
    finds files below the package's root, with groups `lang` and `key`, the page's name that all languages share."""

    package: str
    path: str
    kind: str


_HELP = ("de", "en-us", "es", "fr", "it", "ja", "ko", "pt-br", "ru", "zh-cn", "nl", "pl", "cs", "sv", "tr")
RULES = (
    *(
        Rule(f"libreoffice-help-{name}", r"usr/share/libreoffice/help/(?P<lang>[^/]+)/text/(?P<key>.+\.html)", "html")
        for name in _HELP
    ),
    Rule("debian-handbook", r"usr/share/doc/debian-handbook/html/(?P<lang>[^/]+)/(?P<key>[^/]+\.html)", "html"),
    Rule(
        "installation-guide-amd64",
        r"usr/share/doc/installation-guide-amd64/(?P<lang>[a-z]{2,3}(_\w+)?)/(?P<key>[^/]+\.html)",
        "html",
    ),
    Rule("gnome-user-docs", r"usr/share/help/(?P<lang>[^/]+)/(?P<key>.+\.page)", "mallard"),
    Rule(r"linux-doc-\d[\d.]*", r"usr/share/doc/linux-doc-[\d.]+/(?P<key>.+\.(rst|txt)(\.gz)?)", "plain"),
    Rule(r"python3\.\d+-doc", r"usr/share/doc/python3\.\d+/html/(?P<key>.+\.html)", "html"),
    Rule("anarchism", r"usr/share/doc/anarchism/html/(?P<key>.+\.html)", "html"),
    Rule("vim-doc", r"usr/share/doc/vim[^/]*/html/(?P<key>.+\.html)", "html"),
    Rule("debian-policy", r"usr/share/doc/debian-policy/policy\.html/(?P<key>[^/]+\.html)", "html"),
    Rule("developers-reference", r"usr/share/doc/developers-reference/(?P<key>[^/]+\.html)", "html"),
    Rule("dict-gcide", r"usr/share/dictd/(?P<key>.+\.dict\.dz)", "dictionary"),
    Rule("dict-foldoc", r"usr/share/dictd/(?P<key>.+\.dict\.dz)", "dictionary"),
    Rule("fortunes", r"usr/share/games/fortunes/(?P<key>[^./]+)", "fortunes"),
    Rule("perl-doc", r"usr/share/perl/.*?(?P<key>[^/]+\.pod)", "pod"),
    Rule("manpages", r"usr/share/man/(?P<key>man\d/[^/]+\.gz)", "manual"),
    Rule("manpages-dev", r"usr/share/man/(?P<key>man\d/[^/]+\.gz)", "manual"),
)


@dataclass
class Pages:
    """What one package holds: documents of each language by the page's name, and the text of its licence."""

    package: str
    licence: bytes = b""
    documents: dict[str, dict[str, list[Document]]] = field(default_factory=lambda: defaultdict(dict))


def language(name: str) -> str:
    """One name for each: `en` for en-US and C, `de` for de-DE; regions stay where they are languages of their own."""
    base, _, region = name.replace("_", "-").replace("@", "-").partition("-")
    if base == "C":
        return _ENGLISH
    return f"{base}-{region}" if base in ("pt", "zh", "sr") and region not in ("", "PT") else base


def find_packages(rules: Sequence[Rule]) -> list[Rule]:
    """The rules with names of packages that apt knows; those it does not know are told of and left out. UserError
    where there is no apt, MissingInputError where it knows none."""
    known = set(_apt("apt-cache", "pkgnames").split())
    found, missing = [], []
    for rule in rules:
        names = [name for name in known if re.fullmatch(rule.package, name)]
        if names:
            found.append(Rule(max(names, key=_version), rule.path, rule.kind))
        else:
            missing.append(rule.package)
    if not found:
        raise MissingInputError("apt knows none of the documentation packages; run apt-get update first")
    if missing:
        say(f"apt does not know, left out: {', '.join(missing)}")
    return found


def _version(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _apt(*command: str, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not there: this needs Debian, or a system derived from it") from None
    if done.returncode:
        raise MissingInputError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def fetch(package: str, cache: Path) -> Path:
    """The unpacked package; fetched unless it is there already."""
    folder = cache / package
    if folder.is_dir():
        return folder
    aside = cache / f"{package}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "files").mkdir(parents=True)
    _apt("apt-get", "download", "-qq", package, folder=aside)
    (archive,) = aside.glob("*.deb")
    _apt("dpkg-deb", "-x", str(archive), str(aside / "files"))
    (aside / "files").rename(folder)
    shutil.rmtree(aside, ignore_errors=True)
    return folder


def strip_package(folder: Path, rule: Rule) -> Pages:
    """All text of an unpacked package."""
    pages = Pages(rule.package)
    licence = _licence(folder)
    if licence is not None:
        pages.licence = licence.read_bytes()
    pattern = re.compile(rule.path)
    for path in sorted(folder.rglob("*")):
        match = pattern.fullmatch(path.relative_to(folder).as_posix())
        if match is None or path.is_symlink() or not path.is_file():
            continue
        found = match.groupdict()
        documents = [blocks for blocks in strip_file(path, rule.kind) if sum(map(len, blocks)) >= SHORTEST]
        if documents:
            pages.documents[language(found.get("lang") or _ENGLISH)][found["key"]] = documents
    return pages


def _licence(folder: Path) -> Path | None:
    """The file of a package's licence; one that shares another package's folder of documentation has it there."""
    own = folder / "usr/share/doc" / folder.name
    other = own.readlink().name if own.is_symlink() else ""
    place = fetch(other, folder.parent) / "usr/share/doc" / other if other else own
    return place / "copyright" if (place / "copyright").is_file() else None


def drop_untranslated(documents: dict[str, dict[str, list[Document]]]) -> int:
    """Leaves out pages that are mostly English although their language is another; returns how many."""
    english, dropped = documents.get(_ENGLISH, {}), 0
    for name in set(documents) - {_ENGLISH}:
        for key in list(documents[name]):
            original = {block for blocks in english.get(key, []) for block in blocks}
            blocks = [block for document in documents[name][key] for block in document]
            same = sum(len(block) for block in blocks if block in original)
            if same > _MOSTLY * sum(map(len, blocks)):
                del documents[name][key]
                dropped += 1
    return dropped


def pairs(documents: dict[str, dict[str, list[Document]]], name: str) -> Iterator[tuple[str, str]]:
    """English and other blocks that correspond: of pages with as many blocks in both languages, one by one."""
    for key, others in documents[name].items():
        original = documents.get(_ENGLISH, {}).get(key, [])
        if [len(blocks) for blocks in original] != [len(blocks) for blocks in others]:
            continue
        for blocks, translated in zip(original, others, strict=True):
            yield from ((a, b) for a, b in zip(blocks, translated, strict=True) if a != b)


def write_pages(groups: Sequence[list[Pages]], output: Path) -> dict[str, dict[str, int]]:
    """Writes `text/LANG/PACKAGE.jsonl`, `parallel/en-LANG.tsv` and `licences/PACKAGE.txt`; returns documents and bytes
    of each language. A group is packages whose pages correspond."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    parallel: dict[str, dict[tuple[str, str], None]] = defaultdict(dict)
    for group in groups:
        together: dict[str, dict[str, list[Document]]] = defaultdict(dict)
        for pages in group:
            if pages.licence:
                write_files({output / "licences" / f"{pages.package}.txt": pages.licence})
            for name, documents in pages.documents.items():
                together[name].update(documents)
        drop_untranslated(together)
        for pages in group:
            for name, documents in sorted(pages.documents.items()):
                kept = {key: documents[key] for key in documents if key in together[name]}
                if kept:
                    path = output / "text" / name / f"{pages.package}.jsonl"
                    counts[name].update(_write_documents(path, name, pages.package, kept))
        for name in set(together) - {_ENGLISH}:
            parallel[name].update(dict.fromkeys(pairs(together, name)))
    for name, found in sorted(parallel.items()):
        rows = ["\t".join(" ".join(text.split()) for text in pair) for pair in found]
        if rows:
            write_files({output / "parallel" / f"en-{name}.tsv": ("\n".join(rows) + "\n").encode()})
            counts[name]["pairs"] = len(rows)
    return {name: dict(found) for name, found in sorted(counts.items())}


def _write_documents(path: Path, name: str, package: str, pages: dict[str, list[Document]]) -> dict[str, int]:
    lines, size = [], 0
    for key, documents in pages.items():
        for blocks in documents:
            text = "\n".join(blocks)
            size += len(text.encode())
            record = {"text": text, "lang": name, "source": f"{package}/{key}"}
            lines.append(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    write_files({path: b"".join(lines)})
    return {"documents": len(lines), "bytes": size}


def collect_debian(output: Path, cache: Path, packages: Sequence[str], workers: int) -> dict[str, dict[str, int]]:
    """Fetches, strips and writes; returns documents and bytes of each language, which also go to `summary.json`.

    `packages` are the beginnings of names that are wanted; all where there are none.
    """
    wanted = [rule for rule in RULES if not packages or rule.package.startswith(tuple(packages))]
    if not wanted:
        known = ", ".join(rule.package for rule in RULES)
        raise UserError(f"no package begins with {' or '.join(packages)}; there are {known}")
    rules = find_packages(wanted)
    cache.mkdir(parents=True, exist_ok=True)
    folders = []
    with progress("fetching", len(rules)) as advance:
        for rule in rules:
            folders.append(fetch(rule.package, cache.absolute()))
            advance(1)
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool,
        progress("stripping", len(rules)) as advance,
    ):
        found = []
        for pages in pool.map(strip_package, folders, rules):
            found.append(pages)
            advance(1)
    families: dict[str, list[Pages]] = defaultdict(list)
    for pages in found:
        families["libreoffice-help" if pages.package.startswith("libreoffice-help") else pages.package].append(pages)
        if not pages.licence:
            say(f"{pages.package} came without a file of its licence")
    counts = write_pages(list(families.values()), output)
    summary = {"packages": [rule.package for rule in rules], "languages": counts}
    write_files({output / "summary.json": orjson.dumps(summary, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)})
    return counts

