"""What attention is given besides queries, keys and values, in no tensor of the size of its weights.

B sequences, H heads, Q queries, M keys. Where there is an order, queries are the last Q positions.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Bias:
    """What is added to the logits [B, H, Q, M].

    Args:
        by_distance_HR: a number for each head and distance key - query in at least float32, R = Q + M - 1 of them from
            the last query's first key on: query q adds entry m - q + Q - 1 to key m; None: nothing.
        causal: whether query q sees no key after M - Q + q, its own position.
        real_BM: bool, the keys that are seen; None: all.
        segments: int64 numbers of queries [B, Q] and of keys [B, M]: a query sees keys of its own number; None: all.

    A query that sees no key at all has the same weight for every key that is not after it.
    """

    by_distance_HR: Tensor | None = None
    causal: bool = False
    real_BM: Tensor | None = None
    segments: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Drop:
    """Dropout of the weights [B, H, Q, M].

    Args:
        rate: share that is dropped; the rest is scaled by 1 / (1 - rate).
        states_BHQ: states of the stateless generator, into each of which the key's position is folded.
    """

    rate: float
    states_BHQ: Tensor
