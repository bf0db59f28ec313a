"""Collects real text: the documentation that ships with Python, torch and numpy, read from their files without a
network (here), or Debian's documentation packages (`debian.py`).

Nothing is imported: docstrings come from syntax trees, so that collecting from torch does not load torch.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import orjson
import xxhash

from megaswitch.data.prep.command import Parser, positive, progress, run, say
from megaswitch.data.prep.debian import collect_debian
from megaswitch.data.writer import write_files
from megaswitch.utils.errors import MissingInputError, UserError

SHORTEST = 100
"""Characters below which a docstring is a label rather than a text."""

_PACKAGES = ("numpy", "torch")
_TEXT_ENDINGS = (".rst", ".md", ".txt")
_HEADER_ENDINGS = (".h", ".hpp", ".cuh")
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "ensurepip"}
_WHOLE_FILES = re.compile(
    r"(_docs|_add_newdocs\w*|topics)\.py$"
)  # their documentation is in constants, not in docstrings
_COMMENT = re.compile(r"/\*.*?\*/|(?:^[ \t]*//[^\n]*\n)+", re.DOTALL | re.MULTILINE)
_COMMENT_MARKS = re.compile(r"^[ \t]*(?://+[!<]?|/?\*+[!<]?/?)[ \t]?|[ \t]*\*+/[ \t]*$", re.MULTILINE)
_LEGAL = re.compile(r"copyright|licen[sc]e|all rights reserved", re.IGNORECASE)

_SCHEMA = re.compile(r"\w+::[\w.]+\(.*->")  # signatures of operators that generated headers repeat in comments

Found = tuple[str, str]  # text and where in the file it stands


def documentation_roots() -> list[tuple[str, Path]]:
    """(name, folder) of the standard library, numpy and torch, in this order; those not installed are left out."""
    roots = [("python", Path(sysconfig.get_paths()["stdlib"]))]
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            roots.append((name, Path(spec.origin).parent))
        else:
            say(f"{name} is not installed; its documentation is left out")
    return roots


def documentation_files(root: Path) -> list[Path]:
    """Files below `root` that may hold documentation, in an order that does not depend on the file system."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
        endings = (".py", *_TEXT_ENDINGS, *_HEADER_ENDINGS)
        found += [Path(folder, name) for name in sorted(files) if name.endswith(endings)]
    return found


def texts_of_file(path: Path) -> list[Found]:
    """All documentation in one file, long enough, cleaned of indentation; files that cannot be read hold none."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    if path.suffix == ".py":
        found = _python_texts(path, content)
    elif path.suffix in _HEADER_ENDINGS:
        found = _comment_texts(content.decode("utf-8", "replace"))
    else:
        found = iter([(content.decode("utf-8", "replace"), "")])
    cleaned = ((inspect.cleandoc(text.replace("\ufffd", "")).strip(), where) for text, where in found)
    return [(text, where) for text, where in cleaned if len(text) >= SHORTEST and _is_documentation(text)]


def _is_documentation(text: str) -> bool:
    return not _LEGAL.search(text[:400]) and not _SCHEMA.match(text)


def _python_texts(path: Path, content: bytes) -> Iterator[Found]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        try:
            tree = ast.parse(content)
        except (SyntaxError, ValueError, RecursionError):
            return
    if _WHOLE_FILES.search(path.name):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value, f"line {node.lineno}"
    else:
        yield from _docstrings(tree, "")


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> Iterator[Found]:
    text = ast.get_docstring(node, clean=False)
    if text:
        yield text, name
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}".lstrip("."))


def _comment_texts(content: str) -> Iterator[Found]:
    for match in _COMMENT.finditer(content):
        yield _COMMENT_MARKS.sub("", match.group()), f"line {content.count(chr(10), 0, match.start()) + 1}"


def collect(roots: Sequence[tuple[str, Path]], workers: int = 1) -> Iterator[tuple[str, str]]:
    """(text, source) of all documents below `roots`, each text once, in the same order whatever the number of
    workers."""
    files = [(name, root, path) for name, root in roots for path in documentation_files(root)]
    seen: set[int] = set()
    with progress("collecting", len(files)) as advance:
        for (name, root, path), found in zip(files, _map_files([path for *_, path in files], workers), strict=True):
            for text, where in found:
                digest = xxhash.xxh3_64_intdigest(text.encode("utf-8", "replace"))
                if digest not in seen:
                    seen.add(digest)
                    yield text, f"{name}:{path.relative_to(root).as_posix()}:{where}"
            advance(1)


def _map_files(paths: list[Path], workers: int) -> Iterator[list[Found]]:
    if workers == 1:
        yield from map(texts_of_file, paths)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        yield from pool.map(texts_of_file, paths, chunksize=32)


def collect_docs(output: Path, workers: int) -> None:
    """Writes one JSON object a line, `text` and `source`, to `output`."""
    lines = []
    for text, source in collect(documentation_roots(), workers):
        clean = text.encode("utf-8", "replace").decode("utf-8")
        lines.append(orjson.dumps({"text": clean, "source": source}, option=orjson.OPT_APPEND_NEWLINE))
    if not lines:
        raise MissingInputError("no documentation was found: this Python came without its library's sources")
    content = b"".join(lines)
    write_files({output: content})
    say(f"{len(lines)} documents, {len(content) / 1e6:.1f} MB in {output}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `data_prep/collect.py`; returns its exit code."""
    parser = Parser(
        "Collect text to train on. docs: from what Python, torch and numpy brought along, without a network; one file "
        "of JSON objects with `text` and `source`. debian: from Debian's documentation packages, fetched by apt; a "
        "folder with text in dozens of languages, corresponding paragraphs, and licences.",
        "python data_prep/collect.py docs --output docs.jsonl\n"
        "  python data_prep/collect.py debian --output corpora/debian",
    )
    parser.add_argument("what", choices=["docs", "debian"])
    parser.add_argument("--output", type=Path, required=True, metavar="F", help="docs: F.jsonl; debian: a folder")
    parser.add_argument("--packages", nargs="+", default=[], metavar="P", help="debian: only packages that begin so")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="debian: where packages are unpacked (default: OUTPUT/.packages)"
    )
    parser.add_argument(
        "--workers", type=positive, default=min(os.cpu_count() or 1, 8), help="processes (default: cores)"
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.what == "debian":
            cache = options.cache or options.output / ".packages"
            _tell(options.output, collect_debian(options.output, cache, options.packages, options.workers))
            return
        if options.output.is_dir():
            raise UserError(f"--output {options.output} is a folder; name a file")
        collect_docs(options.output, options.workers)

    return run(work)


def _tell(output: Path, counts: dict[str, dict[str, int]]) -> None:
    for name, found in counts.items():
        size, pairs = found["bytes"] / 1e6, found.get("pairs", 0)
        say(f"{name:8s} {found['documents']:7d} documents {size:8.1f} MB {pairs:7d} paragraphs beside the English ones")
    size = sum(found["bytes"] for found in counts.values()) / 1e6
    say(f"{output}: {len(counts)} languages, {size:.1f} MB of text; licences beside it")
