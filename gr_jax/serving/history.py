"""Requests -> histories -> events, in the ids and columns of the dataset.

The tokenizer of training makes the tokens (`serving.rows`), from events that hold the histories of
a request and, last in each, the event that is asked about.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import date
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int, Int32, Int64

from gr_jax.config import Config
from gr_jax.data.batches import packing
from gr_jax.data.batches.sequences import Spans
from gr_jax.data.dataset import Dataset, Events
from gr_jax.data.log import actions
from gr_jax.errors import shown
from gr_jax.serving.moments import Moment, moment

NAMED = 5  # unknown ids that an error names

Time = int | float | str | date | np.datetime64 | Moment  # as `moments.moment` reads it
AtTime = Time | Literal["now"] | None
Action = str | Iterable[str] | None  # names of the log's actions; one name may stand alone
RawId = str | int
# (item, time[, actions]) in raw ids
RawEvent = tuple[RawId, Time] | tuple[RawId, Time, Action]


class RequestError(ValueError):
    """A request that cannot be answered; the message is one line."""


class Event(NamedTuple):
    """An event of the log, in raw ids."""

    item: str
    time: int  # unix seconds
    action: tuple[str, ...] = ()  # names of the log's actions that happened


@dataclasses.dataclass(frozen=True)
class History:
    """A user at a moment: known events in the order of time, and the time that is asked about."""

    item: Int32[np.ndarray, " n"]  # item ids, 1 to X
    time: Int64[np.ndarray, " n"]  # unix seconds
    action: Int32[np.ndarray, " n"]  # bits, bit i = dataset.catalogue.actions[i]
    user: int  # index in the dataset, whose features and series are known; -1 = none
    at_time: int  # unix seconds
    skipped: int  # events whose item the catalogue does not have

    def __len__(self) -> int:
        return len(self.item)

    @property
    def key(self) -> Hashable:
        """The key of the user in a cache: the user of the log, else the first event."""
        if self.user >= 0 or not len(self):
            return self.user
        return int(self.item[0]), int(self.time[0])


@dataclasses.dataclass(frozen=True)
class HistoryReader:
    """Reads the histories and items that users of a trained model send.

    What they send may be anything: a wrong type is told in a line, like any other mistake.
    """

    dataset: Dataset
    always: int  # bits of the actions that every event of the log has
    # newer than `dataset`, of the same actions: where the histories of users are read if not None
    newer: Dataset | None = None

    @classmethod
    def of(cls, config: Config, dataset: Dataset, newer: Dataset | None = None) -> HistoryReader:
        """A reader for the run of `config`, perhaps with a newer log."""
        names = [action.name for action in actions.parse(config.data.actions) if not action.column]
        always = sum(1 << dataset.catalogue.actions.index(name) for name in names)
        return cls(dataset, always, newer)

    def history(self, events: object, *, at_time: object = None, user: object = None) -> History:
        """Reads a sequence of (item, time) or (item, time, action), in any order.

        The events are put into the order of their full times, those of the same time in the order
        given, as in the log; only then are times cut to seconds.

        Args:
          events: events; an item that the catalogue does not have is skipped and counted.
          at_time: the moment asked about; None = the last event's, or the last of the log without
            events; "now" = the present.
          user: raw id of a user of the log whose features hold for this history; None or unknown =
            no features.

        Raises:
          RequestError: a malformed event, an action that the log does not have, impossible times.
        """
        given = [_parts(event) for event in in_list(events, "history", "(item, time)")]
        ids = self.dataset.catalogue.item_ids([item for item, _, _ in given])
        moments = [_moment(time, "an event's time") for _, time, _ in given]
        times = np.array([moment.seconds for moment in moments], np.int64)
        fractions = np.array([moment.fraction for moment in moments])
        bits = np.array([self.bits(action) for _, _, action in given], np.int32)
        known = np.flatnonzero(ids)
        order = known[np.lexsort((fractions[known], times[known]))]
        last = int(times.max()) if len(times) else int(self.dataset.meta["time_max"])
        asked = self._asked(at_time, last, has_events=len(given) > 0)
        index = -1
        if user is not None:
            index = self.dataset.catalogue.user_or(raw_id(user, "user"), -1)
        return History(ids[order], times[order], bits[order], index, asked, len(given) - len(known))

    def of_log(self, user: str | int, *, at_time: object = None) -> History:
        """All events of a user in the log, as `history` reads `events_of(user)`.

        Raises:
          ConfigError: the log has no such user. RequestError: as `history`.
        """
        if self.newer is not None:
            return self.history(self.events_of(user), at_time=at_time, user=user)
        index = self.dataset.catalogue.user_index(user)
        item, times, bits = _columns_of(self.dataset, index)
        asked = self._asked(at_time, int(times[-1]), has_events=True)
        return History(item, times, bits, index, asked, skipped=0)

    def _asked(self, at_time: object, last: int, *, has_events: bool) -> int:
        if at_time is None:
            return last
        is_now = isinstance(at_time, str) and at_time == "now"
        asked = int(time.time()) if is_now else _moment(at_time, "at_time").seconds
        if has_events and asked < last:
            raise RequestError(
                f"at_time={asked} is before the last event of the history, at {last}"
            )
        return asked

    def bits(self, action: object) -> int:
        """The bits of named actions, and of those that always happen."""
        bits = self.always
        if action is None or action == ():
            return bits
        names = (action,) if isinstance(action, str) else in_list(action, "action", "names")
        for name in names:
            if name not in self.dataset.catalogue.actions:
                known = ", ".join(self.dataset.catalogue.actions) or "none"
                raise RequestError(f"no action {shown(name)} in the log, only {known}")
            bits |= 1 << self.dataset.catalogue.actions.index(name)
        return bits

    def items(
        self, raw: object, name: str, *, may_be_unknown: bool = False
    ) -> Int32[np.ndarray, " M"]:
        """Item ids of raw ids; 0 where the catalogue does not have the item, if that may be.

        Raises:
          RequestError: not a list of ids, or items that the catalogue does not have. It says what
            is wrong with the argument `name`.
        """
        given = [raw_id(value, f"{name}: an item") for value in in_list(raw, name, "items")]
        ids = self.dataset.catalogue.item_ids(given)
        missing = [shown(str(given[i])) for i in np.flatnonzero(ids == 0)]
        if missing and not may_be_unknown:
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            raise RequestError(f"unknown items: {', '.join(missing[:NAMED])}{more}")
        return ids

    def events_of(self, user: str | int) -> list[Event]:
        """The history of a user of the log, in raw ids.

        Raises:
          ConfigError: the log has no such user.
        """
        log = self.newer or self.dataset
        catalogue = log.catalogue
        item, times, bits = _columns_of(log, catalogue.user_index(user))
        names = [
            tuple(name for i, name in enumerate(catalogue.actions) if b >> i & 1)
            for b in bits.tolist()
        ]
        events = zip(catalogue.raw_items(item), times.tolist(), names, strict=True)
        return [Event(*event) for event in events]


def _columns_of(log: Dataset, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items, times and action bits of a user."""
    events = log.events
    span = slice(int(events.offsets[index]), int(events.offsets[index + 1]))
    item = events.item[span]
    bits = np.zeros(len(item), np.int32) if events.action is None else events.action[span]
    return item, events.timestamp[span], bits


def is_batch(histories: Sequence) -> bool:
    """True for a list of histories, False for one history."""
    if not len(histories):
        return False
    first = histories[0]
    return isinstance(first, (list, tuple)) and (
        not len(first) or isinstance(first[0], (list, tuple))
    )


def warm_up_history(dataset: Dataset) -> History:
    """A history of one event of item 1, for a warm-up."""
    time, one = dataset.meta["time_max"], np.ones(1, np.int32)
    return History(one, np.full(1, time, np.int64), np.zeros(1, np.int32), -1, time, 0)


def sequences(
    histories: Sequence[History], dataset: Dataset, *, max_length: int, with_asked: bool
) -> tuple[Events, Spans]:
    """Events of one user per history, the last one asked about, and the visible part of each.

    Args:
      histories: the histories of a request; without `with_asked` none is empty.
      dataset: of the run: features and series of its users.
      max_length: maximum visible events of a history.
      with_asked: if true the event asked about is part of the sequences (ranking), else it only
        follows them (retrieval). Its item is 1: the caller replaces it.
    """
    lengths = np.array([len(history) for history in histories])
    offsets = np.concatenate([[0], np.cumsum(lengths + 1)]).astype(np.int64)
    asked = offsets[1:] - 1

    def column(name: str, at_end: list[int], dtype: Any) -> Any:
        values = np.zeros(offsets[-1], dtype)
        places = packing.token_index(offsets[:-1], lengths)
        values[places] = np.concatenate([getattr(history, name) for history in histories])
        values[asked] = at_end
        return values

    user = np.array([history.user for history in histories])
    events = Events(
        offsets=offsets,
        item=column("item", [1] * len(histories), np.int32),
        timestamp=column("time", [history.at_time for history in histories], np.int64),
        action=None
        if dataset.events.action is None
        else column("action", [0] * len(histories), np.int32),
        rating=None if dataset.events.rating is None else np.zeros(offsets[-1], np.float32),
        **known_of(dataset.events, user),
    )
    visible = np.minimum(lengths, max_length)
    begin = asked - visible
    number = np.arange(len(histories), dtype=np.int32)
    length = (visible + with_asked).astype(np.int32)
    return events, Spans(number, offsets[:-1], begin, length)


def known_of(log: Events, user: Int[np.ndarray, " B"]) -> dict[str, Any]:
    """Columns of features and series of these users of the log; empty where a user is -1."""
    is_user, index, known = user >= 0, np.maximum(user, 0), {}
    if log.user_features is not None:
        features = np.where(is_user[:, None], log.user_features[index], 0)
        known["user_features"] = features.astype(np.int32)
    if log.series_offsets is not None:
        assert log.series_value is not None and log.series_time is not None
        first = log.series_offsets[index]
        count = np.where(is_user, log.series_offsets[index + 1] - first, 0)
        entry = packing.token_index(first, count)
        known["series_offsets"] = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        known["series_value"] = log.series_value[entry]
        known["series_time"] = log.series_time[entry]
    return known


def in_list(values: object, name: str, of: str) -> list[Any]:
    """The values of an argument that is a list, in a list; one text is not a list of characters.

    Raises:
      RequestError: it is none.
    """
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise RequestError(f"{name}={shown(values)}: expected a list of {of}")
    return list(values)


def raw_id(value: object, what: str) -> RawId:
    """An id, if the value can be one: 5.0, None and True are not what a log calls an item.

    Raises:
      RequestError: neither text nor an integer.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, np.integer)):
        raise RequestError(f"{what} is {shown(value)}: expected text or an integer")
    return value if isinstance(value, str) else int(value)


def _parts(event: object) -> tuple[RawId, object, object]:
    """Item, time and actions of a raw event."""
    if not isinstance(event, (list, tuple)) or len(event) not in (2, 3):
        raise RequestError(f"an event is (item, time) or (item, time, action), not {shown(event)}")
    return raw_id(event[0], "an event's item"), event[1], event[2] if len(event) == 3 else ()


def _moment(value: object, what: str) -> Moment:
    try:
        return moment(value)
    except ValueError as error:
        raise RequestError(f"{what} is {shown(value)}: {error}") from None
