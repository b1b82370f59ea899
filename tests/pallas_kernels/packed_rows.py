"""Packed rows for the tests of attention: random ones, and those at which a kernel in blocks can go wrong."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROWS, LENGTH, LONGEST = 3, 40, 12  # of random rows; LENGTH is no multiple of a block


class Rows(NamedTuple):
    """Arrays [R, L]: 0 is padding; targets are the last and contexts the first tokens of a sequence."""

    segments: np.ndarray
    targets: np.ndarray
    contexts: np.ndarray


def pack(row_lengths, length: int, tails=None, heads=None, gaps=None) -> Rows:
    """Returns rows of sequences of these lengths, back to back.

    row_lengths: per row the tokens of its sequences. tails, heads: how many are targets, contexts; a third, a sixth.
    gaps: padding tokens after each sequence.
    """
    segments, targets, contexts = (
        np.zeros((len(row_lengths), length), dtype) for dtype in (np.int32, bool, bool)
    )
    for row, lengths in enumerate(row_lengths):
        start = 0
        for n, tokens in enumerate(lengths):
            stop = start + tokens
            assert stop <= length
            tail = tokens // 3 if tails is None else tails[row][n]
            head = tokens // 6 if heads is None else heads[row][n]
            segments[row, start:stop] = n + 1
            targets[row, stop - tail : stop] = True
            contexts[row, start : start + head] = True
            start = stop + (0 if gaps is None else gaps[row][n])
    return Rows(segments, targets, contexts)


def random_rows(
    rng: np.random.Generator, rows: int = ROWS, length: int = LENGTH, longest: int = LONGEST
) -> Rows:
    """Returns rows with gaps, sequences of one token, any number of targets and contexts, and now and then an empty
    row."""
    row_lengths, tails, heads, gaps = ([[] for _ in range(rows)] for _ in range(4))
    for row in range(rows):
        left = 0 if rng.random() < 0.15 else length
        while True:
            tokens = 1 if rng.random() < 0.2 else int(rng.integers(1, longest + 1))
            if tokens > left:
                break
            row_lengths[row].append(tokens)
            tails[row].append(int(rng.integers(0, tokens + 1)) // 2)
            heads[row].append(int(rng.integers(0, tokens - tails[row][-1] + 1)) // 2)
            gaps[row].append(int(rng.random() < 0.2))
            left -= tokens + gaps[row][-1]
    return pack(row_lengths, length, tails, heads, gaps)


def border_rows(rows: int, length: int, block: int) -> Rows:
    """Returns rows with sequences of 0, 1, block - 1, block and block + 1 tokens, and many tiny ones in a row.

    rows: 7, each of them at the start of a row too, or 1 with all of them.
    """
    tiny = [1, 2, 1, 1, 3]
    if rows == 1:
        lengths = [block, 1, block - 1, block + 1]
        return pack([lengths + tiny * ((length - sum(lengths)) // 8)], length)
    mixed = [block - 1, 1, block + 1] if 2 * block < length else [block - 1, 1]
    return pack([[], [1], [block - 1], [block], [block + 1], tiny * (length // 8), mixed], length)


def whole_rows(length: int, first_targets) -> Rows:
    """Returns one sequence of the whole row per entry, with targets from that position on."""
    tails = [[length - first] for first in first_targets]
    heads = [[first // 4] for first in first_targets]
    return pack([[length]] * len(tails), length, tails, heads)
