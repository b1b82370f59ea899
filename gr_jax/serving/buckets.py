"""Shapes that are compiled: requests are padded to the next, so that none waits for a compiler."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

ROWS = (1, 8, 32)  # queries or histories of one call of a program
SHORTEST = 64  # tokens


def lengths(longest: int) -> tuple[int, ...]:
    """Powers of two from 64 to three quarters of `longest`, and `longest` rounded up to 8s."""
    last = -(-longest // 8) * 8
    powers = (SHORTEST << i for i in range(max(1, last.bit_length())))
    return (*(size for size in powers if 4 * size <= 3 * last), last)


def fitting(sizes: Sequence[int], size: int) -> int:
    """The smallest of the ascending `sizes` that is at least `size`.

    Raises:
      ValueError: there is none.
    """
    index = bisect.bisect_left(sizes, size)
    if index == len(sizes):
        raise ValueError(f"size {size} is above the largest bucket, {sizes[-1]}")
    return sizes[index]


def power_of_four(size: int, *, least: int) -> int:
    """The smallest of `least`, 4 * `least`, 16 * `least`, .. that is at least `size`."""
    while least < size:
        least *= 4
    return least


def powers_of_four(least: int, largest: int) -> Iterator[int]:
    """`least`, 4 * `least`, .. to the first that is at least `largest`."""
    yield least
    while least < largest:
        least *= 4
        yield least


def rows_up_to(count: int) -> tuple[int, ...]:
    """The numbers of rows that calls of up to `count` rows use."""
    return tuple(rows for rows in ROWS if rows <= fitting(ROWS, min(count, ROWS[-1])))


def parts(count: int, size: int = ROWS[-1]) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` things."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
