"""Cuts documents into sentences by punctuation alone, in any language that marks the ends of sentences.

A full stop ends a sentence where space and no small letter follow; the marks of Chinese, Japanese and Hindi end one
wherever they stand; so does the end of a line. Abbreviations are not known: "Dr. Smith" is cut.
"""

from __future__ import annotations

import re

_CLOSING = "\"'\u2019\u201d\u00bb)\\]\u300d\u300f\uff09"
_END = re.compile(
    rf"(?<=[.!?\u2026\u061f\u06d4])[{_CLOSING}]*\s+|(?<=[\u3002\uff01\uff1f\u0964\u0965])[{_CLOSING}]*\s*|\s*\n\s*"
)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, without the space around them; none for a text of spaces."""
    found, start = [], 0
    for match in _END.finditer(text):
        if match.end() < len(text) and text[match.end()].islower() and "\n" not in match.group():
            continue
        closed = match.start() + len(match.group().rstrip())
        found.append(text[start:closed])
        start = match.end()
    found.append(text[start:])
    return [sentence for part in found if (sentence := part.strip())]
