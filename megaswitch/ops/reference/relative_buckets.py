"""Buckets of relative positions (T5), built with integers so that no logarithm can round the wrong way."""

from functools import cache

import torch
from torch import Tensor


@cache
def thresholds(num_buckets: int, max_distance: int) -> tuple[int, ...]:
    """The least distance of each bucket. Half the buckets are exact; bucket e + j begins at the least n with
    log(n / e) / log(max_distance / e) * e >= j, that is n^e * e^j >= max_distance^j * e^e."""
    exact = num_buckets // 2
    steps = num_buckets - exact
    found = list(range(exact))
    n = exact
    for j in range(steps):
        while n**steps * exact**j < max_distance**j * exact**steps:
            n += 1
        found.append(n)
    return tuple(found)


def relative_buckets(relative: Tensor, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128) -> Tensor:
    """Bucket (int64) of each relative position key - query.

    Bidirectional (encoder): half the buckets for keys after the query. Otherwise (decoder) keys after the
    query count as distance 0; they are masked anyway.
    """
    half = num_buckets // 2 if bidirectional else num_buckets
    least = torch.tensor(thresholds(half, max_distance)).to(relative.device, non_blocking=True)
    distance = relative.abs() if bidirectional else (-relative).clamp(min=0)
    bucket = torch.bucketize(distance, least, right=True) - 1
    return bucket + half * (relative > 0) if bidirectional else bucket
