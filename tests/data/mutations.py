"""Damaged corpora and arrays: what readers must answer with an error or with the right data, never with a crash."""

from pathlib import Path

import numpy as np

from megaswitch.data import parts
from megaswitch.data import rng as own_rng
from megaswitch.data.batch import empty_batch
from megaswitch.data.config import DataConfig
from megaswitch.data.layout import HEADER, dtype_for
from megaswitch.data.opening import open_split
from megaswitch.data.sidecar import TokenizerFacts
from megaswitch.data.writer import IndexedWriter
from megaswitch.utils.errors import UserError

VOCABULARY = 160
LENGTHS = {"encoder_length": 24, "decoder_length": 10}
EXTREMES = [0, 1, -1, 2, 7, 255, 256, 1 << 15, (1 << 31) - 1, -(1 << 31), 1 << 32, (1 << 62), (1 << 63) - 1, -(1 << 63)]


def write_base(folder: Path, seed: int = 0) -> tuple[bytes, bytes, bytes]:
    """A good corpus of documents of one to three sequences, some of them empty; its files' bytes (bin, idx, json)."""
    rng = np.random.default_rng(seed)
    prefix = folder / "base"
    with IndexedWriter(str(prefix), dtype_for(VOCABULARY)) as writer:
        for _ in range(12):
            lengths = rng.integers(0, 30, rng.integers(1, 4))
            writer.add_documents(rng.integers(3, 60, lengths.sum()), lengths, np.array([lengths.size]))
        writer.finish(TokenizerFacts("f" * 32, 60))
    content = [Path(f"{prefix}.{ending}").read_bytes() for ending in ("bin", "idx", "json")]
    return content[0], content[1], content[2]


def mutate(content: bytes, rng: np.random.Generator, header: int = 0) -> bytes:
    """One to three mutations: bytes, whole numbers, cuts and additions; every second one in the header."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        end = min(header, len(changed)) if header and rng.random() < 0.5 else len(changed)
        kind = rng.integers(0, 5)
        if kind == 0 and end:
            changed[rng.integers(0, end)] ^= 1 << rng.integers(0, 8)
        elif kind == 1 and end > 8:
            at = int(rng.integers(0, end - 8))
            changed[at : at + 8] = int(rng.choice(EXTREMES)).to_bytes(8, "little", signed=True)
        elif kind == 2 and end > 8:  # a number a little off
            counts = rng.random() < 0.2 and len(changed) > 34
            at = int(rng.choice([18, 26])) if counts else int(rng.integers(0, end - 8))
            value = int.from_bytes(changed[at : at + 8], "little") + int(rng.integers(-3, 4))
            changed[at : at + 8] = (value % (1 << 64)).to_bytes(8, "little")
        elif kind == 3 and len(changed):
            del changed[int(rng.integers(0, len(changed))) :]
        elif kind == 4:
            changed += bytes(rng.integers(0, 256, rng.integers(1, 20), dtype=np.uint8))
    return bytes(changed)


def try_corpus(prefix: str, packing: bool) -> str:
    """Opens a corpus and reads its first samples: the words of the refusal, or "" where there is data."""
    config = DataConfig(train=prefix, split="1,0,0", packing=packing, threads=1)
    try:
        dataset = open_split(config, "train", vocab_size=VOCABULARY, seed=3, **LENGTHS)
        batch = dataset.batch(0, min(6, dataset.num_samples + 1))
    except UserError as error:
        return str(error)
    compiled, parts.native = parts.native, lambda: None
    try:
        twin = dataset.batch(0, len(batch.samples_B))
    finally:
        parts.native = compiled
    for ours, theirs in zip(batch, twin, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    return ""


def try_files(folder: Path, base: tuple[bytes, bytes, bytes], rng: np.random.Generator) -> str:
    """Damages one or two of a corpus's files and tries to read it."""
    content = list(base)
    which = rng.choice(3, p=[0.25, 0.7, 0.05])
    content[which] = mutate(content[which], rng, HEADER.size if which == 1 else 0)
    paths = [folder / f"damaged.{ending}" for ending in ("bin", "idx", "json")]
    for path, piece in zip(paths, content, strict=True):
        path.write_bytes(piece)
    if rng.random() < 0.7:
        paths[2].unlink()  # counts are then compared with nothing
    return try_corpus(str(folder / "damaged"), bool(rng.random() < 0.3))


def odd(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The numbers, one time in five with some replaced by extreme ones or shifted."""
    values = values.astype(np.int64).copy()
    for _ in range(rng.integers(1, 3) if rng.random() < 0.2 else 0):
        if values.size:
            at = rng.integers(0, values.size)
            with np.errstate(over="ignore"):
                near = values[at] + rng.integers(-3, 4)
            values[at] = rng.choice(EXTREMES) if rng.random() < 0.5 else near
    return values


def try_arrays(native: object, rng: np.random.Generator) -> str:
    """Calls the compiled readers with damaged pointers and lengths."""
    count, tokens = int(rng.integers(1, 6)), rng.integers(0, 50, 60).astype(rng.choice(["u1", "u2", "i2", "i4", "i8"]))
    lengths = rng.integers(1, 12, count)
    starts = np.cumsum(lengths) - lengths
    batch = empty_batch(0, 3, (12, 8), packed=bool(rng.random() < 0.5))
    segments = (batch.encoder_segments_BS, batch.decoder_segments_BT)
    keys = own_rng.derive_each(int(rng.integers(0, 1 << 60)), np.arange(3, dtype=np.uint64))
    numbers, order = odd(np.arange(3), rng) if rng.random() < 0.1 else np.arange(3), own_rng.permutation(count, 3)
    try:
        rows = native.Rows(batch.encoder_ids_BS, batch.targets_BT, batch.decoder_ids_BT, *segments)
        if rng.random() < 0.5:
            epochs = [(odd(order, rng), odd(np.cumsum(lengths[order]), rng)) for _ in range(rng.integers(1, 4))]
            rule = odd(np.array([rng.integers(0, 3), 9, 3, 2, -1, 1 << 50]), rng)[None]
            rule[0, 3:5] = min(rule[0, 3], 99), -1  # an id in front is what it is, and sentinels are a hundred
            rows.add_stream(
                *(numbers, tokens, odd(starts, rng), 50, epochs, odd(np.zeros(3), rng), odd(np.array([0, 4, 9]), rng)),
                *(keys, rule, odd(np.zeros(3), rng) if rng.random() < 0.2 else np.zeros(3, np.int64), 159, 1),
            )
        else:
            rules = np.array([[0, n, max(1, n // 3), 1, -1, 0] for n in range(1, 10)], np.int64)
            pieces = [odd(values, rng) for values in (np.arange(count), np.zeros(count), np.minimum(lengths, 9))]
            bounds = [odd(values, rng) for values in (np.zeros(3), np.full(3, count))]
            rows.add_packed(numbers, tokens, odd(starts, rng), 50, *pieces, *bounds, keys, rules, 159, 1)
        bad = rows.make(1)
    except (ValueError, IndexError, MemoryError) as error:
        return str(error) or type(error).__name__
    if bad is None:
        used = np.unique(numbers)
        assert batch.encoder_ids_BS[used].min() >= 0 and batch.encoder_ids_BS[used].max() < 160
        assert batch.targets_BT[used].min() >= 0 and batch.targets_BT[used].max() < 160
    return "" if bad is None else "bad id"
