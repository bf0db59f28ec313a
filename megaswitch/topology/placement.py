"""Which pipeline rank holds which stage.

Ordinarily the stages go round the ranks: stage = chunk * num_ranks + rank. In the V placement (two chunks) they go
to the last rank and come back: the first rank holds the first and the last stage, the last rank the two in the middle.
"""


def stage_of(v: bool, num_ranks: int, rank: int, chunk: int) -> int:
    """The stage that is chunk `chunk` of rank `rank`; `v` is the V placement."""
    assert 0 <= rank < num_ranks and chunk >= 0 and not (v and chunk > 1)
    return 2 * num_ranks - 1 - rank if v and chunk == 1 else chunk * num_ranks + rank


def place_of(v: bool, num_ranks: int, stage: int) -> tuple[int, int]:
    """(rank, chunk) of a stage: the inverse of `stage_of`."""
    chunk, rank = divmod(stage, num_ranks)
    assert chunk >= 0 and not (v and chunk > 1)
    return (num_ranks - 1 - rank if v and chunk == 1 else rank), chunk
