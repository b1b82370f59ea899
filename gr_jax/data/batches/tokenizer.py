"""Histories -> tokens: which token stands where, its content, and what is predicted at it.

Zhai et al. 2024, tables 1 and 11. Of a history of items i and actions a, four schemes:

    retrieval    (i0 a0) (i1 a1) ..   label at each token: the next item, if its action is positive
    interleave   i0 a0 i1 a1 ..       label at item tokens: the outcome; none at action tokens
    paired       i0 (i0 a0) i1 (i1 a1) ..   the same, and action tokens name their item again
    sum          (i0 -) (i1 a0) ..    the same in half the tokens: an item, and the action before it

An action token without its item has to find it by attention, which costs the first block; a
paired one has it already.

Before the first event stand the user features; slowly changing series are merged by time, each
entry before the events of its own time. No label is ever part of a token at or before the one it
is predicted at.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from gr_jax.config import Config, ConfigError
from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.packing import Slots, token_index
from gr_jax.data.batches.sequences import Spans
from gr_jax.data.dataset import Catalogue, Dataset, Events

# Seconds (68 years): times inside a sequence count from its first event and end here.
LATEST = np.iinfo(np.int32).max


@dataclass(frozen=True)
class TokenScheme:
    """How the histories of a dataset become tokens."""

    kind: Literal["retrieval", "interleave", "paired", "sum"]
    with_actions: bool  # tokens hold actions
    positive_bit: int  # retrieval: bit that an event must have to be a label; -1 = none
    tasks: tuple[str, ...]  # ranking: labels predicted at an item
    num_user_features: int  # C: tokens before the first event
    max_series: int  # latest entries of slow series in a sequence

    @property
    def tokens_per_event(self) -> int:
        """Tokens of one event."""
        return 2 if self.kind in ("interleave", "paired") else 1

    def max_tokens(self, max_events: int) -> int:
        """Maximum tokens of `max_events` events: the fixed normaliser of the attention."""
        return self.num_user_features + self.max_series + self.tokens_per_event * max_events


ITEMS = TokenScheme("retrieval", False, -1, (), 0, 0)  # items alone


def token_scheme(config: Config, dataset: Dataset) -> TokenScheme:
    """The token scheme of a run.

    Raises:
      ConfigError: a task or option needs what the dataset does not have, or a sequence can be
        longer than a row.
    """
    events, ranking = dataset.events, config.ranking
    actions, positive = dataset.catalogue.actions, config.loss.positive
    needed = [task for task in ranking.tasks if task != "rating"]
    for name in needed + [positive] * bool(positive):
        if name not in actions:
            known = ", ".join(actions) or "none"
            raise ConfigError(
                f"the log has no action {name!r}, only {known}: set config.data.actions"
            )
    if "rating" in ranking.tasks and events.rating is None:
        raise ConfigError("config.ranking.tasks: the log has no ratings for the task 'rating'")
    features, series = events.user_features, events.series_value
    scheme = TokenScheme(
        kind=ranking.tokens if ranking.tasks else "retrieval",  # type: ignore[arg-type]
        with_actions=bool(ranking.tasks) or config.model.use_actions,
        positive_bit=actions.index(positive) if positive else -1,
        tasks=ranking.tasks,
        num_user_features=0 if features is None else features.shape[1],
        max_series=0 if series is None else config.data.max_series,
    )
    if scheme.with_actions and events.action is None:
        raise ConfigError("the log has no actions: set config.data.actions")
    tokens = scheme.max_tokens(config.data.max_length)
    if tokens > config.data.row_length and config.model.kind != "dlrm":
        raise ConfigError(
            f"config.data.row_length={config.data.row_length}: a sequence can have {tokens} tokens"
            f" (user features {scheme.num_user_features}, series {scheme.max_series},"
            f" {scheme.tokens_per_event} for each of data.max_length={config.data.max_length}"
            " events); set row_length to at least that"
        )
    return scheme


def series_range(
    events: Events, spans: Spans, max_series: int
) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """First index and count of the latest slow-series entries up to each sequence's last event."""
    if not max_series:
        return np.zeros(len(spans), np.int64), np.zeros(len(spans), np.int64)
    return series_known(events, spans.user, events.timestamp[spans.last_event], max_series)


def series_known(
    events: Events, user: Int[np.ndarray, " B"], time: Int[np.ndarray, " B"], max_series: int
) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """First index and count of the latest `max_series` or fewer entries of users up to a time."""
    offsets, times = events.series_offsets, events.series_time
    assert offsets is not None and times is not None
    low, high = offsets[user], offsets[user + 1]
    entry, (owner, _) = token_index(low, high - low), _owners(high - low)
    known = np.bincount(owner[times[entry] <= time[owner]], minlength=len(user))
    count = np.minimum(known, max_series)
    return low + known - count, count


def token_counts(events: Events, spans: Spans, scheme: TokenScheme) -> Int[np.ndarray, " B"]:
    """Tokens of each sequence."""
    series = series_range(events, spans, scheme.max_series)[1]
    return scheme.num_user_features + series + scheme.tokens_per_event * spans.length


def outcomes(
    events: Events, catalogue: Catalogue, event: Int[np.ndarray, " T"], tasks: tuple[str, ...]
) -> tuple[Float32[np.ndarray, "T Y"], Float32[np.ndarray, "T Y"]]:
    """Outcomes of events by task, and 1 where they are known (a rating may be missing), else 0."""
    value = np.zeros((len(event), len(tasks)), np.float32)
    known = np.ones_like(value)
    for y, task in enumerate(tasks):
        if task == "rating":
            assert events.rating is not None
            rating = events.rating[event]
            known[:, y] = ~np.isnan(rating)
            value[:, y] = np.nan_to_num(rating)
        else:
            assert events.action is not None
            value[:, y] = events.action[event] >> catalogue.actions.index(task) & 1
    return value, known


def labels(
    events: Events, following: Int[np.ndarray, " T"], scheme: TokenScheme
) -> Int[np.ndarray, " T"]:
    """Labels of retrieval: the items of these next events, 0 where the action is not positive."""
    label = events.item[following]
    if scheme.positive_bit < 0:
        return label
    assert events.action is not None
    return np.where(events.action[following] >> scheme.positive_bit & 1, label, 0)


def action_code(events: Events, event: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """`Batch.action` of events: 1 + 2 * bits."""
    assert events.action is not None
    return 1 + 2 * events.action[event]


def fill_rows(
    events: Events, catalogue: Catalogue, spans: Spans, scheme: TokenScheme, slots: Slots
) -> Batch:
    """Rows [num_rows, row_length] that hold the tokens of `spans` in the given slots."""
    event = spans.events()
    at = _places(events, spans, event, scheme, slots)
    action_place = at.content + scheme.tokens_per_event - 1
    item, item_place = events.item[event], at.content
    if scheme.kind == "paired":
        item, item_place = np.tile(item, 2), np.append(at.content, action_place)
    rows = functools.partial(_scattered, slots)

    fields: dict[str, Any] = {"item": rows((item_place, item))}
    fields["position"] = rows((at.token, token_index(np.zeros_like(at.tokens), at.tokens)))
    segment = _rank_in_row(slots.row, slots.column)
    fields["segment"] = rows((at.token, np.repeat(segment, at.tokens)))

    began = events.timestamp[event[at.first_event]]
    entry_value, entry_time = (values[at.entry] for values in _series(events))
    entry_clock = at.entry_place, _clock(entry_time, began[at.entry_owner])
    clock = _clock(events.timestamp[event], began[at.owner])
    time = rows(entry_clock, (action_place, clock), (at.content, clock))
    fields |= {"time": time, "query_time": time}

    if scheme.kind == "retrieval":
        following = spans.following()
        asked = _clock(events.timestamp[following], began[at.owner])
        fields["query_time"] = rows(entry_clock, (at.content, asked))
        fields["label"] = rows((at.content, labels(events, following, scheme)))
    else:
        value, known = outcomes(events, catalogue, event, scheme.tasks)
        known = known * (event >= spans.first_label()[at.owner])[:, None]
        fields["outcome"] = rows((at.content, value * known))
        fields["outcome_weight"] = rows((at.content, known))
    if scheme.with_actions:
        code = action_code(events, event)
        if scheme.kind == "sum":  # of the event before; the first event of a sequence has none
            code = np.roll(code, 1)
            code[at.first_event] = 0
        fields["action"] = rows((action_place, code))

    if catalogue.item_features is not None:
        fields["item_features"] = rows((item_place, catalogue.item_features[item]))
    if scheme.num_user_features or scheme.max_series:
        known = np.zeros((len(spans), 0), np.int32)
        if events.user_features is not None:
            known = events.user_features[spans.user]
        fields["user_feature"] = rows((at.entry_place, entry_value), (at.user_feature, known))
    return Batch(**fields)


def label_places(
    events: Events, spans: Spans, scheme: TokenScheme, slots: Slots
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"], Int[np.ndarray, " T"]]:
    """Labels in the rows of `fill_rows`: flat place of each, its event and its sequence."""
    event = spans.events()
    at = _places(events, spans, event, scheme, slots)
    is_label = event >= spans.first_label()[at.owner]
    return at.content[is_label], event[is_label], at.owner[is_label]


class _Places(NamedTuple):
    """Tokens of several sequences, as flat indices into the rows."""

    owner: Int[np.ndarray, " T"]  # sequence of each event
    first_event: Int[np.ndarray, " B"]  # index of each sequence's first event among the T
    content: Int[np.ndarray, " T"]  # token of each event's item
    entry: Int[np.ndarray, " S"]  # index of each series entry in the events
    entry_owner: Int[np.ndarray, " S"]  # its sequence
    entry_place: Int[np.ndarray, " S"]  # its token
    user_feature: Int[np.ndarray, "B C"]  # tokens of the user features
    tokens: Int[np.ndarray, " B"]  # tokens of each sequence
    token: Int[np.ndarray, " tokens"]  # every token


def _places(
    events: Events, spans: Spans, event: np.ndarray, scheme: TokenScheme, slots: Slots
) -> _Places:
    """Merge events and series entries by time, behind the user features.

    An entry stands before the events of its own time.
    """
    owner, nth = _owners(spans.length)
    first_event = np.cumsum(spans.length) - spans.length
    first, count = series_range(events, spans, scheme.max_series)
    entry, (entry_owner, entry_nth) = token_index(first, count), _owners(count)

    events_before, entries_before = np.zeros_like(entry), np.zeros_like(event)
    if len(entry):
        times, entry_times = events.timestamp[event], _series(events)[1][entry]
        low = min(times.min(), entry_times.min())
        span = max(times.max(), entry_times.max()) - low + 1
        key, entry_key = owner * span + (times - low), entry_owner * span + (entry_times - low)
        before = np.searchsorted(key, entry_key, "left")
        events_before = before - first_event[entry_owner]
        before = np.searchsorted(entry_key, key, "right")
        entries_before = before - (np.cumsum(count) - count)[owner]

    start, step = slots.start, scheme.tokens_per_event
    lead = start + scheme.num_user_features
    tokens = scheme.num_user_features + count + step * spans.length
    return _Places(
        owner,
        first_event,
        lead[owner] + entries_before + step * nth,
        entry,
        entry_owner,
        lead[entry_owner] + entry_nth + step * events_before,
        start[:, None] + np.arange(scheme.num_user_features),
        tokens,
        token_index(start, tokens),
    )


def _scattered(slots: Slots, *parts: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Rows with values at flat places, later parts over earlier ones; 0 elsewhere.

    The dtype (int32 or float32) and the trailing axes are those of the values.
    """
    places, values = zip(*parts, strict=True)
    shape = values[-1].shape[places[-1].ndim :]
    dtype = np.float32 if values[-1].dtype.kind == "f" else np.int32
    filled = np.zeros((slots.num_rows * slots.row_length, *shape), dtype)
    for place, value in parts:
        filled[place] = value
    return filled.reshape(slots.num_rows, slots.row_length, *shape)


def _clock(time: np.ndarray, began: np.ndarray) -> np.ndarray:
    """Seconds since the beginning of a sequence, 0 to LATEST."""
    return np.clip(time - began, 0, LATEST)


def _owners(count: Int[np.ndarray, " B"]) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"]]:
    """Owner of each of `count` things of B owners, and its number among the owner's."""
    return np.repeat(np.arange(len(count)), count), token_index(np.zeros_like(count), count)


def _series(events: Events) -> tuple[np.ndarray, np.ndarray]:
    """Values and times of all slow-series entries; empty where there are none."""
    if events.series_value is None or events.series_time is None:
        return np.zeros(0, np.int32), np.zeros(0, np.int64)
    return events.series_value, events.series_time


def _rank_in_row(
    row: Int[np.ndarray, " B"], column: Int[np.ndarray, " B"]
) -> Int[np.ndarray, " B"]:
    """1 for the first sequence of a row, 2 for the second, .."""
    order = np.lexsort((column, row))
    first_of_row = np.searchsorted(row[order], row[order])
    rank = np.empty(len(row), np.int64)
    rank[order] = np.arange(len(row)) - first_of_row + 1
    return rank
