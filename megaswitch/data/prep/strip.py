"""Takes the text out of documentation: HTML, Mallard pages, manual pages, POD, dictionaries, plain text.

A stripper gives the documents of a file, each a list of blocks (paragraphs, headings, items) of clean text.
"""

from __future__ import annotations

import gzip
import html
import re
import unicodedata
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

Document = list[str]
"""The blocks of one document, in order."""

_HEADINGS = [f"h{level}" for level in range(1, 7)]
_LISTS = ["li", "dt", "dd", "td", "th", "tr", "table", "caption"]
_BLOCKS = frozenset(["p", "pre", "div", "section", "article", "blockquote", "title", "br", *_HEADINGS, *_LISTS])
_SKIPPED = frozenset(["script", "style", "nav", "header", "footer", "aside", "noscript", "head"])


class _Blocks(HTMLParser):
    """Collects text by blocks; what stands in scripts, heads and menus is passed over."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: Document = []
        self._text: list[str] = []
        self._skipped = 0

    def flush(self) -> None:
        """The end of a block."""
        text = " ".join("".join(self._text).split())
        self._text = []
        if text:
            self.blocks.append(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in _SKIPPED:
            self._skipped += 1
        elif tag in _BLOCKS:
            self.flush()

    def handle_endtag(self, tag: str) -> None:
        if tag in _SKIPPED:
            self._skipped = max(0, self._skipped - 1)
        elif tag in _BLOCKS:
            self.flush()

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self._text.append(data)


def strip_html(content: str) -> list[Document]:
    """A web page."""
    parser = _Blocks()
    parser.feed(content)
    parser.close()
    parser.flush()
    return [parser.blocks]


def strip_mallard(content: str) -> list[Document]:
    """A page of GNOME's help, without its credits and licence."""
    body = re.sub(r"<(info|credit|license)\b.*?</\1>|<!--.*?-->", "", content, flags=re.DOTALL)
    cut = re.sub(r"</(p|title|item|td|desc|screen|code)>", "\n\n", body)
    return [_paragraphs(html.unescape(re.sub(r"<[^>]+>", "", cut)))]


def strip_manual(content: str) -> list[Document]:
    """A manual page in troff."""
    text = re.sub(r"^[.'][ \t]*\\\".*$|^[.'][ \t]*(TH|so|de|ie|el|if|ds|nr)\b.*$", "", content, flags=re.MULTILINE)
    text = re.sub(r"^[.'][ \t]*(SH|SS|PP|P|LP|TP|IP|HP|sp)\b ?", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"^[.'][ \t]*[A-Za-z]{1,3}\b ?", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\f(\[\w*\]|\(..|\w)|\\s[-+]?\d|\\[&|^%/,:]", "", text)
    for name, sign in (("-", "-"), ("(aq", "'"), ("(dq", '"'), ("(lq", '"'), ("(rq", '"'), ("(em", "-"), ("e", "\\")):
        text = text.replace(f"\\{name}", sign)
    return [_paragraphs(re.sub(r"\\\(..|\\\*\S|\\ ", " ", text))]


def strip_pod(content: str) -> list[Document]:
    """Perl's documentation."""
    text = re.sub(r"^=(begin|end|for|encoding|over|back|cut|pod).*$", "", content, flags=re.MULTILINE)
    text = re.sub(r"^=(head\d|item)[ \t]*", "", text, flags=re.MULTILINE)
    text = re.sub(r"[A-Z]<<+\s+(.*?)\s+>>+", r"\1", text, flags=re.DOTALL)
    return [_paragraphs(re.sub(r"[A-Z]<([^<>]*)>", r"\1", text))]


def strip_plain(content: str) -> list[Document]:
    """A text as it is."""
    return [[block for part in re.split(r"\n\s*\n", content) if (block := part.strip("\n"))]]


def strip_dictionary(content: str) -> list[Document]:
    """A dictionary of dictd: an entry begins at the margin, what belongs to it is indented."""
    return [[" ".join(entry.split())] for entry in re.split(r"\n(?=\S)", content)]


def strip_fortunes(content: str) -> list[Document]:
    """Sayings with a line of % between them."""
    return [[saying.strip()] for saying in re.split(r"^%$", content, flags=re.MULTILINE)]


STRIPPERS: dict[str, Callable[[str], list[Document]]] = {
    "html": strip_html,
    "mallard": strip_mallard,
    "manual": strip_manual,
    "pod": strip_pod,
    "plain": strip_plain,
    "dictionary": strip_dictionary,
    "fortunes": strip_fortunes,
}


def strip_file(path: Path, kind: str) -> list[Document]:
    """The documents of a file, unpacked where it is gzip; none where it cannot be read."""
    try:
        content = path.read_bytes()
        if path.suffix in (".gz", ".dz"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return []
    return [[unicodedata.normalize("NFC", b) for b in blocks] for blocks in STRIPPERS[kind](_decode(content))]


def _decode(content: bytes) -> str:
    """UTF-8, or what a web page says of itself, or Latin-1, in which every byte is a character."""
    said = re.search(rb"charset=[\"']?([\w-]+)", content[:2000])
    for name in ("utf-8", *([said.group(1).decode()] if said else [])):
        try:
            return content.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
    return content.decode("latin-1")


def _paragraphs(text: str) -> Document:
    return [block for part in re.split(r"\n\s*\n", text) if (block := " ".join(part.split()))]
