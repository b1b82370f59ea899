"""Histories -> sequences of events: which events are input and which are labels.

In retrieval `splits` says which event of a user is asked for. Ranking splits by time: events from a
moment on are labels, everything before them is their past.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from gr_jax.config import ConfigError, EvaluateConfig, RankingConfig
from gr_jax.data.batches.packing import token_index
from gr_jax.data.batches.splits import Split, at_shares, day, first_not_before, held_out
from gr_jax.data.dataset import Events


@dataclass(frozen=True)
class Spans:
    """The input events of each sequence, as ranges of the flat event columns.

    Event i of a sequence is flat event `begin + i`, or `kept[begin + i]` where only some events
    were kept (Stochastic Length). In retrieval its label, and the time it asks about, are those of
    the event after it.
    """

    user: Int[np.ndarray, " B"]  # index of the user in the dataset
    first: Int[np.ndarray, " B"]  # flat index of the user's first event, visible or not
    begin: Int[np.ndarray, " B"]  # index of the first input event
    length: Int[np.ndarray, " B"]  # input events, 1 to N
    # ranking: flat index of the first event that is a label
    label_from: Int[np.ndarray, " B"] | None = None
    kept: Int[np.ndarray, " K"] | None = None  # flat indices of kept events; None = all
    # with `kept`: flat index of the event after the last one there was
    end: Int[np.ndarray, " B"] | None = None

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: np.ndarray) -> Spans:
        """The sequences at `index`."""
        rest = (None if x is None else x[index] for x in (self.label_from, self.end))
        label_from, end = rest
        picked = self.user[index], self.first[index], self.begin[index], self.length[index]
        return Spans(*picked, label_from, self.kept, end)

    def events(self) -> Int[np.ndarray, " T"]:
        """Flat indices of the input events, sequence after sequence."""
        index = token_index(self.begin, self.length)
        return index if self.kept is None else self.kept[index]

    def following(self) -> Int[np.ndarray, " T"]:
        """Flat index of the event after each input event: the next one kept, `end` at the last."""
        event = self.events()
        if self.kept is None:
            return event + 1
        assert self.end is not None
        following = np.roll(event, -1)
        following[np.cumsum(self.length) - 1] = self.end
        return following

    @property
    def last_event(self) -> Int[np.ndarray, " B"]:
        """Flat index of the last input event of each sequence."""
        last = self.begin + self.length - 1
        return last if self.kept is None else self.kept[last]

    def first_label(self) -> Int[np.ndarray, " B"]:
        """Flat index from which events are labels, in ranking."""
        return self.first if self.label_from is None else self.label_from


def spans(events: Events, evaluate: EvaluateConfig, split: Split, *, max_length: int) -> Spans:
    """The most recent `max_length` input events of every user who has a part in `split`.

    The event after them is the target of validation or test, as `splits.held_out` says. Training
    has a label at each of its inputs: those of a user with training events e_0 .. e_{n-1} are
    e_0 .. e_{n-2} with labels e_1 .. e_{n-1}.

    Raises:
      ConfigError: no user has a part in the split.
    """
    held = held_out(events, evaluate)
    user = np.flatnonzero(held.target[split] >= 0)
    if len(user) == 0:
        raise ConfigError(_nobody(split, held.moments))
    first, end = events.offsets[user], held.target[split][user]
    begin = np.maximum(first, end - max_length)
    return Spans(user.astype(np.int32), first, begin, (end - begin).astype(np.int32))


def _nobody(split: Split, moments: tuple[int, int] | None) -> str:
    """Why no user has a part in a split, and what to do."""
    if moments is None:
        needed = {"train": 4, "valid": 3, "test": 3}[split]
        return (
            f"no user has the {needed} events that the {split} split needs: take a longer log, or"
            " a lower data.min_events if data.filter left too little"
        )
    valid, test = map(day, moments)
    if split == "train":
        return (
            f"no user has two events before {valid}, to train on: choose a later"
            " evaluate.valid_from or evaluate.valid_time"
        )
    since, until = (valid, f" and before {test}") if split == "valid" else (test, "")
    return (
        f"no user has events both before {since} and from then on{until}, so nobody can be asked"
        f" for the {split} split: choose another evaluate.{split}_from or"
        " evaluate.split=leave_one_out"
    )


def time_bounds(
    timestamp: Int[np.ndarray, " E"], config: RankingConfig
) -> dict[Split, tuple[int, int]]:
    """First time of each split's labels and the first time after them, unix seconds.

    They divide the events by the shares of the config, as well as the log allows: events that share
    a second stay together.

    Raises:
      ConfigError: a split would have no event.
    """
    low, high = int(timestamp.min()), int(timestamp.max()) + 1
    valid, test = map(int, at_shares(timestamp, config.valid_from, config.test_from))
    bounds: dict[Split, tuple[int, int]] = {
        "train": (low, valid),
        "valid": (valid, test),
        "test": (test, high),
    }
    for name, share, time in (
        ("valid_from", config.valid_from, valid),
        ("test_from", config.test_from, test),
    ):
        if time == low:
            raise ConfigError(
                f"config.ranking.{name}={share} leaves no event to train: too many events share one"
                " time"
            )
    return bounds


def labels_between(
    offsets: Int[np.ndarray, " B1"], timestamp: Int[np.ndarray, " E"], low: int, high: int
) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """Flat indices of each user's first event not before `low`, and first not before `high`."""
    return first_not_before(offsets, timestamp, low), first_not_before(offsets, timestamp, high)


def label_spans(
    offsets: Int[np.ndarray, " B1"],
    label_from: Int[np.ndarray, " B"],
    label_to: Int[np.ndarray, " B"],
    *,
    max_length: int,
) -> Spans:
    """Sequences of at most N events with every event of [label_from, label_to) as a label once.

    A label sees all the user's events before it in the sequence: from the first one, or at least
    N / 2 of them.

    Args:
      offsets: user u owns events offsets[u] : offsets[u + 1], in time order.
      label_from, label_to: flat indices of each user's first label, and of the event after the
        last.
      max_length: N.
    """
    user = np.flatnonzero(label_to > label_from)
    return windows(user, offsets[user], label_from[user], label_to[user], max_length=max_length)[0]


def windows(
    user: Int[np.ndarray, " U"],
    first: Int[np.ndarray, " U"],
    low: Int[np.ndarray, " U"],
    high: Int[np.ndarray, " U"],
    *,
    max_length: int,
) -> tuple[Spans, Int[np.ndarray, " B"]]:
    """Sequences of at most N events with each event low .. high - 1 as a label once; and their U.

    Args:
      user: index of the user in the dataset.
      first: flat index of the user's first event.
      low, high: flat index of the first label, and of the event after the last; high > low.
      max_length: N.
    """
    stride = max(1, max_length - max_length // 2)
    # End of the first sequence.
    head = np.minimum(high, np.maximum(first + max_length, low + stride))
    count = 1 + -(-(high - head) // stride)
    owner, nth = np.repeat(np.arange(len(user)), count), token_index(np.zeros_like(count), count)
    user, first, low, high, head = (x[owner] for x in (user, first, low, high, head))
    end = np.minimum(high, head + nth * stride)
    begin = np.maximum(first, end - max_length)
    labelled = np.where(nth == 0, low, head + (nth - 1) * stride)
    spans = Spans(
        user.astype(np.int32), first, begin, (end - begin).astype(np.int32), label_from=labelled
    )
    return spans, owner
