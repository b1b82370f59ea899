"""Histories -> next-item sequences: which events are input and which are labels, under leave-one-out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

from gr_jax.config import ConfigError

Split = Literal["train", "valid", "test"]

# Events at the end of a user's log that a split may not use as input: its own target and every later one.
HELD_OUT = {"train": 3, "valid": 2, "test": 1}


@dataclass(frozen=True)
class Spans:
    """The input events of each sequence, as ranges of the flat event columns.

    Token i of a sequence is event `begin + i`; its label, and the time it is asked about, are those of the event
    after it. In `train` every token is asked; in `valid` and `test` only the last, whose label is held out.
    """

    user: Int[np.ndarray, " B"]  # index of the user in the dataset
    first: Int[np.ndarray, " B"]  # flat index of the user's first event, visible or not
    begin: Int[np.ndarray, " B"]  # flat index of the first input event
    length: Int[np.ndarray, " B"]  # input events, 1 to N

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: np.ndarray) -> Spans:
        """The sequences at `index`."""
        return Spans(self.user[index], self.first[index], self.begin[index], self.length[index])


def spans(offsets: Int[np.ndarray, " B1"], split: Split, *, max_length: int) -> Spans:
    """The most recent `max_length` input events of every user who has a target in `split`.

    A user with n events e_0 .. e_{n-1} gives the test target e_{n-1}, the validation target e_{n-2} and trains on the
    rest: inputs e_0 .. e_{n-4} with labels e_1 .. e_{n-3}. Users with fewer than 3 events are in no split, with 3 not
    in `train`.

    Args:
      offsets: user u owns events offsets[u] : offsets[u + 1], in time order.
      split: train, valid or test.
      max_length: N.

    Raises:
      ConfigError: no user is long enough.
    """
    held_out = HELD_OUT[split]
    counts = np.diff(offsets)
    user = np.flatnonzero(counts >= max(3, held_out + 1))
    if len(user) == 0:
        raise ConfigError(
            f"no user has the {max(3, held_out + 1)} events that the {split} split needs: is the log sorted by user?"
        )
    end = offsets[user + 1] - held_out
    begin = np.maximum(offsets[user], end - max_length)
    return Spans(user.astype(np.int32), offsets[user], begin, (end - begin).astype(np.int32))
