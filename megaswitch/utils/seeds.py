"""Named seeds: what is drawn depends on the run's seed and on names, never on ranks or on the order of drawing."""

import hashlib


def named_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that is a stable hash (BLAKE2b) of `seed` and the names."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
