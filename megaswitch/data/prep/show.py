"""Shows what a corpus holds: counts first, then its first documents. Checking every byte is `verify`'s work."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import orjson

from megaswitch.data.indexed import IndexedCorpus
from megaswitch.data.prep.command import Parser, run
from megaswitch.data.tokenizer import Tokenizer
from megaswitch.utils.errors import DataError

_IDS_SHOWN = 64
_SOURCES_SHOWN = 20


def describe(corpus: IndexedCorpus, tokenizer: Tokenizer | None, documents: range) -> dict[str, Any]:
    """Counts, then what made the corpus, then some of its documents as ids, or as text with a tokenizer.

    DataError where the tokenizer is not the one of the corpus.
    """
    facts = corpus.sidecar.tokenizer if corpus.sidecar else None
    if tokenizer is not None and facts is not None and tokenizer.facts != facts:
        raise DataError(
            f"{tokenizer.path} is not the tokenizer that {corpus.prefix} was prepared with (fingerprints differ)"
        )
    numbers = range(min(documents.start, corpus.num_documents), min(documents.stop, corpus.num_documents))
    ids = [corpus.document(number).tolist() for number in numbers]
    return {
        "sequences": corpus.num_sequences,
        "documents": corpus.num_documents,
        "tokens": corpus.num_tokens,
        "dtype": corpus.dtype.name,
        "vocab_size": facts.vocab_size if facts else None,
        "sources": corpus.sidecar.sources if corpus.sidecar else [],
        "options": corpus.sidecar.options if corpus.sidecar else {},
        "first": numbers.start,
        "shown": ids if tokenizer is None else [tokenizer.decode(document) for document in ids],
    }


def _as_text(description: dict[str, Any]) -> str:
    counts = ("sequences", "documents", "tokens", "dtype", "vocab_size")
    shown = [f"{name}: {description[name]}" for name in counts]
    sources = description["sources"]
    if sources:
        more = f" and {len(sources) - _SOURCES_SHOWN} more" if len(sources) > _SOURCES_SHOWN else ""
        shown.append(f"sources: {', '.join(sources[:_SOURCES_SHOWN])}{more}")
    shown += [f"{name}: {value}" for name, value in description["options"].items() if value]
    for number, document in enumerate(description["shown"], description["first"]):
        shown.append(f"document {number}: {document if isinstance(document, str) else _ids_as_text(document)}")
    return "\n".join(shown) + "\n"


def _ids_as_text(ids: list[int]) -> str:
    more = f" ... ({len(ids)} ids)" if len(ids) > _IDS_SHOWN else ""
    return " ".join(str(i) for i in ids[:_IDS_SHOWN]) + more


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `data_prep/inspect.py`; returns its exit code."""
    parser = Parser(
        "Show a corpus: counts of sequences, documents and tokens, then some of its documents.",
        "python data_prep/inspect.py data/docs --tokenizer docs.model",
    )
    parser.add_argument("prefix", metavar="PREFIX", help="path without ending")
    parser.add_argument("--tokenizer", metavar="M.model", help="show text instead of ids")
    parser.add_argument("--json", action="store_true", help="one JSON object, whole documents")
    parser.add_argument("--documents", type=int, default=3, metavar="K", help="how many documents (default: 3)")
    parser.add_argument("--from", type=int, default=0, metavar="N", dest="first", help="the first to show (default: 0)")
    options = parser.parse_args(arguments)

    def work() -> None:
        tokenizer = Tokenizer(options.tokenizer) if options.tokenizer else None
        first = max(options.first, 0)
        wanted = range(first, first + max(options.documents, 0))
        description = describe(IndexedCorpus(options.prefix), tokenizer, wanted)
        sys.stdout.write(orjson.dumps(description).decode() + "\n" if options.json else _as_text(description))

    return run(work)
