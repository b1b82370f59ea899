"""Stochastic Length: in training most long histories are cut to N^(alpha/2) events.

Zhai et al. 2024, eq. 4, app. F.1. With N the maximum length and 1 < alpha <= 2, a history of n
events is used whole if n <= N^(alpha/2), else whole with probability N^alpha / n^2 and otherwise
cut to exactly floor(N^(alpha/2)) events. So E[used^2] <= 2 N^alpha, and attention costs
O(N^alpha). alpha = 2 cuts nothing.
"""

from __future__ import annotations

import decimal
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, UInt

from gr_jax.config import DataConfig
from gr_jax.data.batches.packing import token_index
from gr_jax.data.hashing import splitmix64

Selection = Literal["greedy", "random", "weighted"]

POSITION_BITS = 20  # of a sort key; 32 are random
# Sequences sorted at once: the bits that are left, and small enough for caches.
CHUNK = 1 << (64 - 32 - POSITION_BITS)
LONGEST = 1 << POSITION_BITS  # events


@dataclass(frozen=True)
class Rule:
    """How histories are cut.

    selection: events of a cut history. greedy = the most recent | random = all subsets equally
    likely | weighted = drawn without replacement with weights 1 - f_i / sum_j f_j, f_i the age of
    event i at the last event. Ages of similar size give nearly equal weights: this rule thins out
    events that are old compared with all the others together.
    """

    max_length: int  # N, at most 2^20 with a selection at random
    alpha: float  # in (1, 2]; 2 keeps everything
    selection: Selection

    @classmethod
    def of(cls, config: DataConfig) -> Rule:
        """The rule of a config."""
        selection: Selection = config.stochastic_length_selection  # type: ignore[assignment]
        return cls(config.max_length, config.stochastic_length_alpha, selection)


def threshold(max_length: int, alpha: float) -> int:
    """Longest history that is always used whole: floor(N^(alpha/2)).

    Exact for alpha as it prints: 1.6 is 8/5.
    """
    with decimal.localcontext(prec=60):
        power = decimal.Decimal(max_length) ** (decimal.Decimal(str(alpha)) / 2)
        # Whole powers come out a rounding below or above.
        return int(power + decimal.Decimal("1e-30"))


def keep_full_probability(
    length: Int[np.ndarray, "*B"], max_length: int, alpha: float
) -> Float[np.ndarray, "*B"]:
    """Probability of using n events whole: 1 up to the threshold, N^alpha / n^2 above."""
    above = np.minimum(1.0, float(max_length) ** alpha / np.maximum(length, 1).astype(float) ** 2)
    return np.where(length <= threshold(max_length, alpha), 1.0, above)


def choose(
    begin: Int[np.ndarray, " B"],
    length: Int[np.ndarray, " B"],
    timestamp: Int[np.ndarray, " E"],
    user: Int[np.ndarray, " B"],
    *,
    rule: Rule,
    seed: int,
    epoch: int,
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " B"]]:
    """The events of each sequence that this epoch trains on.

    The draw of a sequence depends on (seed, epoch), its user and where it ends in the log, never
    on the other sequences: any part of them can be asked for, anywhere, with the same outcome.

    Args:
      begin: flat index of the first event of each sequence.
      length: events of each, 1 to N.
      timestamp: the whole column, seconds, ascending within a sequence.
      user: index of the user of each sequence.
      rule: how long a sequence may be, and what is kept of it.
      seed, epoch: of the draws; any integers.

    Returns:
      Flat indices of the kept events, sequence after sequence, ascending in each; and the number
      that each keeps.

    Raises:
      ValueError: a sequence is longer than N, or N than 2^20.
    """
    max_length, alpha, selection = rule.max_length, rule.alpha, rule.selection
    if len(length) and length.max() > max_length:
        raise ValueError(
            f"a sequence of {length.max()} events is longer than max_length={max_length}"
        )
    if selection != "greedy" and max_length > LONGEST:
        raise ValueError(
            f"max_length={max_length}: must be at most {LONGEST} for selection={selection!r}"
        )

    keep = threshold(max_length, alpha)
    end = begin.astype(np.int64) + length
    key = _sequence_key(seed, epoch, user, end)
    cut = uniform(key) >= keep_full_probability(length, max_length, alpha)
    new_length = np.where(cut, keep, length)
    event_index = token_index(end - new_length, new_length)  # the most recent events
    if selection == "greedy":
        return event_index, new_length

    place = (np.cumsum(new_length) - new_length)[cut]
    begin, length, key = begin.astype(np.int64)[cut], length[cut], key[cut]
    for first in range(0, len(begin), CHUNK):
        part = slice(first, first + CHUNK)
        chosen = _subset(
            begin[part], length[part], timestamp, key[part], keep, weighted=selection == "weighted"
        )
        event_index[place[part, None] + np.arange(keep)] = chosen
    return event_index, new_length


def _subset(
    begin: Int[np.ndarray, " B"],
    length: Int[np.ndarray, " B"],
    timestamp: Int[np.ndarray, " E"],
    key: UInt[np.ndarray, " B"],
    keep: int,
    *,
    weighted: bool,
) -> Int[np.ndarray, "B keep"]:
    """Flat indices, ascending, of `keep` events of each sequence, the first in a race."""
    event = token_index(begin, length)
    sequence = np.repeat(np.arange(len(begin)), length)
    draw = splitmix64(np.repeat(key, length) + event.astype(np.uint64))
    random = draw >> np.uint64(32)
    if weighted:
        # Exponential clocks with rates w finish in the order of draws without replacement by w.
        time = -np.log(uniform(draw)) / _weights(length, timestamp[event], sequence)
        # Floats above 0 sort as their bits do.
        random = time.astype(np.float32).view(np.uint32).astype(np.uint64)
    # Sequence, 32 random bits, place in the sequence: all keys differ, so exactly `keep` finish.
    order = random << np.uint64(POSITION_BITS)
    order |= (event - begin[sequence]).astype(np.uint64)
    order |= sequence.astype(np.uint64) << np.uint64(32 + POSITION_BITS)
    start = np.cumsum(length) - length
    last_kept = np.sort(order)[start + keep - 1]
    return event[order <= last_kept[sequence]].reshape(len(begin), keep)


def _weights(
    length: Int[np.ndarray, " B"], timestamp: Int[np.ndarray, " T"], sequence: Int[np.ndarray, " T"]
) -> Float[np.ndarray, " T"]:
    """1 - f_i / sum_j f_j of the events of each sequence; at least 1e-30, 1 if times are equal."""
    start = np.cumsum(length) - length
    age = timestamp[start + length - 1][sequence] - timestamp
    total = np.maximum(np.add.reduceat(age, start), 1)
    return np.maximum(1 - age / total[sequence], 1e-30)


def uniform(key: UInt[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """Numbers in (0, 1) from random 64-bit keys."""
    return ((key >> np.uint64(40)).astype(np.float64) + 0.5) * 2.0**-24


def _sequence_key(
    seed: int, epoch: int, user: Int[np.ndarray, " B"], end: Int[np.ndarray, " B"]
) -> UInt[np.ndarray, " B"]:
    """A random 64-bit key for each sequence."""
    key = np.zeros(len(user), np.uint64)
    draws = (np.uint64(seed % 2**64), np.uint64(epoch % 2**64))
    for part in (*draws, user.astype(np.uint64), end.astype(np.uint64)):
        key = splitmix64(key + part)
    return key
