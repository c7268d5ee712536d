"""Which rows of a batch stand for it, within a number of bytes. Pure."""

from __future__ import annotations


def rows(shape: tuple[int, ...], item_bytes: int, most_bytes: int, turn: int) -> tuple[slice, ...]:
    """Return the slices of a sample ``[B, T, D]`` or ``[B, D]`` that has at most ``most_bytes``, at least one vector.

    Whole sequences, beginning at another one at each ``turn``; part of one sequence where a whole one is too long,
    in consecutive frames.

    >>> rows((16, 500, 1024), 4, 4_100_000, turn=3)
    (slice(6, 8, None), slice(0, 500, None))
    >>> rows((2, 500, 1024), 4, 1 << 20, turn=0)
    (slice(0, 1, None), slice(0, 256, None))
    """
    vector = max(1, item_bytes * shape[-1])
    frames = 1
    for size in shape[1:-1]:
        frames *= size
    sequence = max(1, vector * frames)
    count = min(shape[0], max(1, most_bytes // sequence)) if shape[0] else 0
    turns = max(1, shape[0] // count) if count else 1
    start = (turn % turns) * count
    chosen = (slice(start, start + count),)
    if len(shape) < 3:
        return chosen
    fitting = shape[1] if sequence <= most_bytes else max(1, most_bytes // max(1, sequence // max(1, shape[1])))
    return (*chosen, slice(0, min(shape[1], fitting)))
