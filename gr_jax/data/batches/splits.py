"""What is held out of the training of retrieval: which event of each user validates and tests.

leave_one_out   the last event of each user tests, the one before validates, the others train
time            two moments for all users: what is before the first trains; the first event of a
                user from then on, if it is before the second, validates; the first event from the
                second on tests

At a moment of time a model is asked what each user does next, as a model is that was trained then
and is served from then on; it has learnt from nobody's later events. The history of the test has
the events of the validation part too, the training has not. A user with no event before a moment,
or none after it, is not asked.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from gr_jax.config import ConfigError, EvaluateConfig
from gr_jax.config.checks import unix_seconds
from gr_jax.data.batches.packing import token_index
from gr_jax.data.dataset import Dataset, Events

Split = Literal["train", "valid", "test"]


class HeldOut(NamedTuple):
    """Where the log of each user is cut, by flat indices of the events."""

    train_end: Int[np.ndarray, " B"]  # after the last training event
    # the last event that a user is asked for in a split; -1 = the user has no part in it
    target: dict[Split, Int[np.ndarray, " B"]]
    moments: tuple[int, int] | None  # of validation and test, unix seconds; None = leave_one_out


class TrainingLog(NamedTuple):
    """The training events of every user, in the order of time: all that may be learnt from.

    User u has item[offsets[u] : offsets[u + 1]].
    """

    offsets: Int[np.ndarray, " B1"]
    item: Int[np.ndarray, " T"]  # ids 1..X
    num_items: int  # X


def held_out(events: Events, evaluate: EvaluateConfig) -> HeldOut:
    """What `evaluate.split` holds out.

    Raises:
      ConfigError: the moments leave one of the splits without an event.
    """
    first, end = events.offsets[:-1], events.offsets[1:]
    if evaluate.split == "leave_one_out":
        moments, has_targets = None, end - first >= 3
        train_end = np.maximum(first, end - 2)
        valid, test = (np.where(has_targets, end - back, -1) for back in (2, 1))
    else:
        moments = moments_of(events.timestamp, evaluate)
        train_end, test_from = (
            first_not_before(events.offsets, events.timestamp, moment) for moment in moments
        )
        valid = np.where((train_end > first) & (train_end < test_from), train_end, -1)
        test = np.where((test_from > first) & (test_from < end), test_from, -1)
    train = np.where(train_end - first >= 2, train_end - 1, -1)
    return HeldOut(train_end, {"train": train, "valid": valid, "test": test}, moments)


def training_log(dataset: Dataset, evaluate: EvaluateConfig) -> TrainingLog:
    """The events that `evaluate.split` leaves to train."""
    return first_events(dataset, held_out(dataset.events, evaluate).train_end)


def first_events(dataset: Dataset, end: Int[np.ndarray, " B"]) -> TrainingLog:
    """The events of each user before the flat index `end`."""
    events = dataset.events
    length = end - events.offsets[:-1]
    offsets = np.concatenate([[0], np.cumsum(length)])
    kept = events.item[token_index(events.offsets[:-1], length)]
    return TrainingLog(offsets, kept, dataset.num_items)


def moments_of(timestamp: Int[np.ndarray, " E"], evaluate: EvaluateConfig) -> tuple[int, int]:
    """The moments of validation and test of `evaluate.split="time"`, unix seconds.

    Raises:
      ConfigError: no event is before the first, between them, or after the second.
    """
    shares = at_shares(timestamp, evaluate.valid_from, evaluate.test_from)
    moments, fields = [], []
    for name, by_share in zip(("valid", "test"), shares, strict=True):
        text, share = getattr(evaluate, f"{name}_time"), getattr(evaluate, f"{name}_from")
        given = unix_seconds(text) if text else None
        moments.append(int(by_share) if given is None else given)
        fields.append(f"{name}_time={text!r}" if text else f"{name}_from={share}")

    valid, test = moments
    for has_events, field, which in (
        ((timestamp < valid).any(), fields[0], "before it, to train on"),
        (((timestamp >= valid) & (timestamp < test)).any(), fields[0], f"from it to {fields[1]}"),
        ((timestamp >= test).any(), fields[1], "from it on, to test on"),
    ):
        if not has_events:
            first, last = (day(int(time)) for time in (timestamp.min(), timestamp.max()))
            raise ConfigError(
                f"config.evaluate.{field}: there is no event {which};"
                f" the log is from {first} to {last}"
            )
    return valid, test


def at_shares(timestamp: Int[np.ndarray, " E"], *shares: float) -> Int[np.ndarray, " S"]:
    """For each share the time before which about so many of the events are."""
    place = [int(len(timestamp) * share) for share in shares]
    return np.partition(timestamp, place)[place]


def first_not_before(
    offsets: Int[np.ndarray, " B1"], timestamp: Int[np.ndarray, " E"], moment: int
) -> Int[np.ndarray, " B"]:
    """Flat index of each user's first event at `moment` or later; after the last if there is none.

    Args:
      offsets: user u owns events offsets[u] : offsets[u + 1], in time order; there may be none.
    """
    earlier = np.concatenate([[0], np.cumsum(timestamp < moment)])
    return offsets[:-1] + earlier[offsets[1:]] - earlier[offsets[:-1]]


def day(moment: int) -> str:
    """A time as it is told: its day in UTC."""
    return str(np.datetime64(moment, "s").astype("datetime64[D]"))
