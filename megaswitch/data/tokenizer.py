"""The vocabulary: a sentencepiece model with T5's special pieces (pad 0, EOS 1, unknown 2, no BOS) and 100 sentinels
above its pieces.

A model of N pieces gives N + 100 ids; `<extra_id_0>` is the last id, `<extra_id_99>` is N. T5's own model is of this
kind (32,000 pieces); mT5's holds the sentinels as its last 100 pieces, and then no more are added (250,100 ids).
Models pad their tables beyond the last id (T5 to 32,128, mT5 to 250,112), which changes no id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece
import xxhash
from numpy.typing import NDArray

from megaswitch.data.sidecar import TokenizerFacts
from megaswitch.data.spans import NUM_SENTINELS
from megaswitch.utils.errors import DataError, MissingInputError

OnBad = Literal["refuse", "replace"]

SPACE = "\u2581"
"""What sentencepiece writes for a space."""

LONGEST_AT_ONCE = 1 << 20
"""Characters beyond which a text is encoded in parts, so that memory stays bounded: encoding takes some 30 bytes a
character."""

_CUTS = " \n"
_SENTINEL = re.compile(r"<extra_id_(\d{1,2})>")
_SPECIAL = {"pad": 0, "eos": 1, "unk": 2, "bos": -1}


class Tokenizer:
    """Text to ids and back. Cheap to copy between processes by path; safe to share by threads."""

    def __init__(self, path: str | Path) -> None:
        """Loads a `.model`; MissingInputError or DataError says what is wrong with the file."""
        self.path = str(path)
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise MissingInputError(f"the tokenizer {path} cannot be read: {error.strerror}") from None
        self.fingerprint: str = xxhash.xxh3_128_hexdigest(content)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            if not content:
                raise RuntimeError("it is empty")
            self._processor.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise DataError(f"{path} is not a sentencepiece model ({error})") from None
        self.num_pieces: int = self._count_pieces()
        """Pieces in the `.model`, sentinels not counted."""
        self._check()

    @property
    def vocab_size(self) -> int:
        """All ids: pieces and 100 sentinels."""
        return self.num_pieces + NUM_SENTINELS

    @property
    def facts(self) -> TokenizerFacts:
        """What a corpus remembers of this tokenizer."""
        return TokenizerFacts(self.fingerprint, self.num_pieces, NUM_SENTINELS)

    def sentinel(self, number: int) -> int:
        """The id of `<extra_id_number>`; they count down from the last id."""
        if not 0 <= number < NUM_SENTINELS:
            raise DataError(f"there is no <extra_id_{number}>: sentinels run from 0 to {NUM_SENTINELS - 1}")
        return self.vocab_size - 1 - number

    def encode(self, text: str, on_bad: OnBad = "replace") -> list[int]:
        """Ids without EOS. Lone surrogates, which no UTF-8 can hold, become U+FFFD or, with `refuse`, a DataError."""
        return self.encode_batch([text], on_bad)[0]

    def encode_batch(self, texts: Sequence[str], on_bad: OnBad = "replace") -> list[list[int]]:
        """`encode` of many texts in one call, on the calling thread alone."""
        clean = [repair(text) for text in texts]
        if on_bad == "refuse" and any(new is not text for new, text in zip(clean, texts, strict=True)):
            raise DataError(
                "the text holds a lone surrogate, which is no character; repair it, or use on_bad='replace'"
            )
        ids: list[list[int]] = self._processor.encode(clean, out_type=int, num_threads=1)
        return ids

    def encode_arrays(self, texts: list[str], threads: int = 1) -> list[NDArray[np.int32]]:
        """Ids of many texts without EOS as int32 arrays, which spares making Python's integers; on `threads` threads.

        Texts hold no lone surrogates. What is normalised is normalised here, by the model's own rule (NFKC for T5's),
        and nowhere else.
        """
        if max(map(len, texts), default=0) > LONGEST_AT_ONCE and self._splits_at_spaces:
            cut = [list(_cut(text)) for text in texts]
            pieces = iter(self._encode([piece for part in cut for piece in part], threads))
            return [np.concatenate([next(pieces) for _ in part]) for part in cut]
        return self._encode(texts, threads)

    def _encode(self, texts: list[str], threads: int) -> list[NDArray[np.int32]]:
        ids: list[NDArray[np.int32]] = self._processor.encode(texts, out_type="numpy", num_threads=threads)
        return ids

    @cached_property
    def _splits_at_spaces(self) -> bool:
        """Whether no piece spans a space: then a text may be cut before one, and its parts give the same ids."""
        pieces = (str(self._processor.id_to_piece(i)) for i in range(self.num_pieces))
        alike = (self.encode(f"a{c}a") == self.encode("a") + self.encode(f"{c}a") for c in _CUTS)
        return all(alike) and not any(SPACE in piece.lstrip(SPACE) for piece in pieces)

    def encode_masked(self, text: str) -> list[int]:
        """`encode` of text in which `<extra_id_k>` stands for sentinel k."""
        ids: list[int] = []
        for i, part in enumerate(_SENTINEL.split(text)):
            ids += [self.sentinel(int(part))] if i % 2 else self.encode(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids: padding and EOS vanish, sentinels read `<extra_id_k>`, ids beyond the vocabulary `<id_n>`."""
        text = ""
        for plain, run in groupby((int(i) for i in ids), key=lambda i: 0 <= i < self.num_pieces):
            if plain:
                text += self._decode_run(list(run), first=not text)
            else:
                text += "".join(f" {self._name(i)}" for i in run)
        return text.strip(" ")

    def _decode_run(self, run: list[int], first: bool) -> str:
        decoded: str = self._processor.decode(run)
        words = [i for i in run if not self._processor.is_control(i)]
        spaced = bool(words) and self._processor.id_to_piece(words[0]).startswith(SPACE)
        return decoded if first or not spaced else f" {decoded}"

    def _name(self, number: int) -> str:
        if self.num_pieces <= number < self.vocab_size:
            return f"<extra_id_{self.vocab_size - 1 - number}>"
        return f"<id_{number}>"

    def _count_pieces(self) -> int:
        """All pieces of the model, less the sentinels where they are its last ones; DataError for sentinels
        elsewhere."""
        size = int(self._processor.get_piece_size())
        first = size - NUM_SENTINELS
        last = [str(self._processor.id_to_piece(i)).lstrip(SPACE) for i in range(max(first, 0), size)]
        if last == [f"<extra_id_{number}>" for number in reversed(range(NUM_SENTINELS))]:
            return first
        unknown = self._processor.unk_id()
        if any(self._processor.piece_to_id(f"{space}<extra_id_0>") != unknown for space in ("", SPACE)):
            raise DataError(
                f"{self.path} holds sentinels among its pieces, not as its last {NUM_SENTINELS} in T5's order "
                "(<extra_id_99> to <extra_id_0>); use a model without them"
            )
        return size

    def _check(self) -> None:
        processor = self._processor
        found = {name: int(getattr(processor, f"{name}_id")()) for name in _SPECIAL}
        if found != _SPECIAL:
            raise DataError(
                f"{self.path} has other special pieces than T5's: found {found}, need {_SPECIAL}; train one with "
                "data_prep/train_tokenizer.py"
            )


def repair(text: str) -> str:
    """The text itself, or where it holds lone surrogates a copy with U+FFFD for each."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _cut(text: str) -> Iterable[str]:
    """Parts of at most `LONGEST_AT_ONCE` characters, cut before a space, and within a word that is longer."""
    start = 0
    while len(text) - start > LONGEST_AT_ONCE:
        end = max(text.rfind(c, start + 1, start + LONGEST_AT_ONCE) for c in _CUTS)
        end = end if end > 0 else start + LONGEST_AT_ONCE
        yield text[start:end]
        start = end
    yield text[start:]
