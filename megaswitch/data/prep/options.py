"""The options by which commands say what their inputs are and how documents come out of them."""

from __future__ import annotations

import argparse

from megaswitch.data.prep.command import positive
from megaswitch.data.prep.conditions import conditions
from megaswitch.data.prep.documents import Reading
from megaswitch.data.prep.inputs import Source, find
from megaswitch.utils.errors import UserError

INPUT_HELP = (
    "files (.jsonl, .txt, .parquet; also .gz, .zst, .xz behind the first two), folders, globs, fsspec addresses "
    "(s3://...), or - for standard input"
)


def add_reading(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds `--input` and what says how to read it."""
    defaults = Reading()
    parser.add_argument("--input", nargs="+", required=required, default=[], metavar="F", help=INPUT_HELP)
    parser.add_argument(
        "--format", choices=["jsonl", "text", "parquet"], default="", help="of inputs whose ending does not say it"
    )
    parser.add_argument(
        "--key", default=defaults.key, help="field or column that holds the text; a.b for one within (default: text)"
    )
    parser.add_argument(
        "--documents",
        choices=["line", "paragraph", "file"],
        default=defaults.unit,
        help="what is a document in plain text (default: line)",
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COND",
        help="keep records of which this holds: lang=de,fr or score>=0.5 or licence!=unknown; may be repeated",
    )
    parser.add_argument(
        "--on-bad",
        choices=["refuse", "skip", "replace"],
        default=defaults.on_bad,
        help="records that are no valid text or too long: stop (default), leave out, or put U+FFFD for bad characters "
        "where possible; the last two count them and name the first five",
    )
    parser.add_argument(
        "--on-empty", choices=["skip", "refuse"], default=defaults.on_empty, help="empty documents (default: skip)"
    )
    parser.add_argument(
        "--max-bytes",
        type=positive,
        default=defaults.max_bytes,
        metavar="N",
        help="longest record; longer ones are never held in memory (default: 128 MiB)",
    )
    parser.add_argument("--min-chars", type=int, default=0, metavar="N", help="leave out shorter documents")
    parser.add_argument("--max-chars", type=int, default=0, metavar="N", help="leave out longer documents")
    parser.add_argument("--dedup", action="store_true", help="leave out documents that the same shard held before")


def reading_of(options: argparse.Namespace) -> Reading:
    """What was chosen; UserError where it makes no sense."""
    where = tuple(options.where)
    conditions(where)
    if options.min_chars < 0 or options.max_chars < 0:
        raise UserError("--min-chars and --max-chars are 0 or more")
    return Reading(
        key=options.key,
        unit=options.documents,
        where=where,
        on_bad=options.on_bad,
        on_empty=options.on_empty,
        max_bytes=options.max_bytes,
        min_chars=options.min_chars,
        max_chars=options.max_chars,
        dedup=options.dedup,
    )


def sources_of(options: argparse.Namespace) -> list[Source]:
    """The files of `--input`; MissingInputError, UserError."""
    sources = find(options.input, options.format)
    if options.where and any(source.format == "text" for source in sources):
        raise UserError("--where looks at fields, and plain text has none")
    return sources
