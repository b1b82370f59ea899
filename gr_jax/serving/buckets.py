"""Shapes that are compiled: requests are padded to the next one, so that no request waits for a compilation."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

ROWS = (1, 8, 32)  # queries or histories of one call of a program
SHORTEST = 64  # tokens


def lengths(most: int) -> tuple[int, ...]:
    """Powers of two from 64 up to three quarters of `most`, and `most` rounded up to a multiple of 8."""
    last = -(-most // 8) * 8
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


def powers_of_four(least: int, most: int) -> Iterator[int]:
    """`least`, 4 * `least`, .. to the first that is at least `most`."""
    yield least
    while least < most:
        least *= 4
        yield least


def rows_up_to(most: int) -> tuple[int, ...]:
    """The numbers of rows that calls of up to `most` rows use."""
    return tuple(rows for rows in ROWS if rows <= fitting(ROWS, min(most, ROWS[-1])))


def parts(count: int, most: int = ROWS[-1]) -> Iterator[slice]:
    """Slices of at most `most` that cover `count` things."""
    return (slice(start, min(start + most, count)) for start in range(0, count, most))
