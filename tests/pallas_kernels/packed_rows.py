"""Packed rows for the tests of attention: random ones, and those at which blocks can go wrong."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROWS, LENGTH, LONGEST = 3, 40, 12  # of random rows; LENGTH is no multiple of a block


class Rows(NamedTuple):
    """Arrays [R, L]: 0 is padding; targets are the last tokens of a sequence."""

    segments: np.ndarray
    targets: np.ndarray


def pack(row_lengths, length: int, tails=None, gaps=None) -> Rows:
    """Rows of sequences of these lengths, back to back.

    row_lengths: per row the tokens of its sequences. tails: how many are targets; a third.
    gaps: padding tokens after each sequence.
    """
    segments, targets = (np.zeros((len(row_lengths), length), t) for t in (np.int32, bool))
    for row, lengths in enumerate(row_lengths):
        start = 0
        for n, tokens in enumerate(lengths):
            stop = start + tokens
            assert stop <= length
            tail = tokens // 3 if tails is None else tails[row][n]
            segments[row, start:stop] = n + 1
            targets[row, stop - tail : stop] = True
            start = stop + (0 if gaps is None else gaps[row][n])
    return Rows(segments, targets)


def random_rows(
    rng: np.random.Generator, rows: int = ROWS, length: int = LENGTH, longest: int = LONGEST
) -> Rows:
    """Rows with gaps, sequences of one token, any number of targets, and some empty rows."""
    row_lengths, tails, gaps = ([[] for _ in range(rows)] for _ in range(3))
    for row in range(rows):
        left = 0 if rng.random() < 0.15 else length
        while True:
            tokens = 1 if rng.random() < 0.2 else int(rng.integers(1, longest + 1))
            if tokens > left:
                break
            row_lengths[row].append(tokens)
            tails[row].append(int(rng.integers(0, tokens + 1)) // 2)
            gaps[row].append(int(rng.random() < 0.2))
            left -= tokens + gaps[row][-1]
    return pack(row_lengths, length, tails, gaps)


def border_rows(rows: int, length: int, block: int) -> Rows:
    """Rows with sequences of 0, 1, block - 1, block and block + 1 tokens, and many tiny ones.

    rows: 7, each of them at the start of a row too, or 1 with all of them.
    """
    tiny = [1, 2, 1, 1, 3]
    if rows == 1:
        lengths = [block, 1, block - 1, block + 1]
        return pack([lengths + tiny * ((length - sum(lengths)) // 8)], length)
    mixed = [block - 1, 1, block + 1] if 2 * block < length else [block - 1, 1]
    return pack([[], [1], [block - 1], [block], [block + 1], tiny * (length // 8), mixed], length)


def whole_rows(length: int, first_targets) -> Rows:
    """One sequence of the whole row per entry, with targets from that position on."""
    return pack([[length]] * len(first_targets), length, [[length - n] for n in first_targets])
