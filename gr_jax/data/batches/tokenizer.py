"""Histories -> token streams: which token stands where, what it says and what is to be predicted at it.

Zhai et al. 2024, tables 1 and 11. Of a history of items i and actions a, four streams:

    retrieval    (i0 a0) (i1 a1) ..     label at each token: the next item; undefined where its action is not positive
    interleave   i0 a0 i1 a1 ..         label at item tokens: what happened; undefined at action tokens
    paired       i0 (i0 a0) i1 (i1 a1) ..   the same, and the action token names its item again
    sum          (i0 -) (i1 a0) ..      the same in half the tokens: an item, and the action of the event before

An action token without its item has to find it by attention, which costs the first block; a paired one has it already.

Before the first event stand the user's attributes (contextual prefix); slowly changing series are merged by time, each
entry before the events of its own time. No label is ever part of a token at or before the one it is predicted at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from gr_jax.config import Config, ConfigError
from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.packing import token_index
from gr_jax.data.batches.sequences import Spans
from gr_jax.data.dataset import Dataset

LATEST = np.iinfo(
    np.int32
).max  # seconds; times inside a sequence count from its first event and end here (68 years)

Fill = Callable[..., Batch]  # (spans, row, column, num_rows=) -> Batch


@dataclass(frozen=True)
class TokenScheme:
    """How the histories of a dataset become tokens."""

    kind: Literal["retrieval", "interleave", "paired", "sum"]
    with_actions: bool  # tokens tell actions
    positive_bit: int  # retrieval: bit that an event must have to be a label; -1 = none
    tasks: tuple[str, ...]  # ranking: what is predicted at an item
    num_user_features: int  # C: tokens of the contextual prefix
    max_series: int  # most recent entries of slow series that a sequence takes in

    @property
    def tokens_per_event(self) -> int:
        """Tokens of one event."""
        return 2 if self.kind in ("interleave", "paired") else 1

    def max_tokens(self, max_events: int) -> int:
        """Most tokens of a sequence of `max_events` events: the fixed normaliser of the attention."""
        return self.num_user_features + self.max_series + self.tokens_per_event * max_events


ITEMS = TokenScheme("retrieval", False, -1, (), 0, 0)  # items alone


def token_scheme(config: Config, dataset: Dataset) -> TokenScheme:
    """The token stream of a run.

    Raises:
      ConfigError: a task or option needs what the dataset does not have, or a row is shorter than a sequence can be.
    """
    actions, ranking = dataset.catalogue.actions, config.ranking
    for name in (
        *(t for t in ranking.tasks if t != "rating"),
        *filter(None, [config.loss.positive]),
    ):
        if name not in actions:
            known = ", ".join(actions) or "none"
            raise ConfigError(
                f"the log has no action {name!r}, only {known}: set config.data.actions"
            )
    if "rating" in ranking.tasks and dataset.events.rating is None:
        raise ConfigError("config.ranking.tasks: the log has no ratings for the task 'rating'")
    scheme = TokenScheme(
        kind=ranking.tokens if ranking.tasks else "retrieval",  # type: ignore[arg-type]
        with_actions=bool(ranking.tasks) or config.model.use_actions,
        positive_bit=actions.index(config.loss.positive) if config.loss.positive else -1,
        tasks=ranking.tasks,
        num_user_features=0
        if dataset.events.user_features is None
        else dataset.events.user_features.shape[1],
        max_series=0 if dataset.events.series_value is None else config.data.max_series,
    )
    if scheme.with_actions and dataset.events.action is None:
        raise ConfigError("the log has no actions: set config.data.actions")
    tokens = scheme.max_tokens(config.data.max_length)
    if tokens > config.data.row_length and config.model.kind != "dlrm":
        raise ConfigError(
            f"config.data.row_length={config.data.row_length}: a sequence can have {tokens} tokens (prefix"
            f" {scheme.num_user_features}, series {scheme.max_series}, {scheme.tokens_per_event} for each of"
            f" data.max_length={config.data.max_length} events); set row_length to at least that"
        )
    return scheme


def series_range(
    dataset: Dataset, spans: Spans, max_series: int
) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """First index and count of each sequence's slow-series entries: the most recent ones up to its last event."""
    if not max_series:
        return np.zeros(len(spans), np.int64), np.zeros(len(spans), np.int64)
    return series_known(dataset, spans.user, dataset.events.timestamp[spans.last_event], max_series)


def series_known(
    dataset: Dataset, user: Int[np.ndarray, " B"], time: Int[np.ndarray, " B"], max_series: int
) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
    """First index and count of the at most `max_series` latest slow-series entries of each user up to a time."""
    offsets, times = dataset.events.series_offsets, dataset.events.series_time
    assert offsets is not None and times is not None
    low, high = offsets[user], offsets[user + 1]
    entry, (owner, _) = token_index(low, high - low), _owners(high - low)
    known = np.bincount(owner[times[entry] <= time[owner]], minlength=len(user))
    count = np.minimum(known, max_series)
    return low + known - count, count


def token_counts(dataset: Dataset, spans: Spans, *, scheme: TokenScheme) -> Int[np.ndarray, " B"]:
    """Tokens of each sequence."""
    series = series_range(dataset, spans, scheme.max_series)[1]
    return scheme.num_user_features + series + scheme.tokens_per_event * spans.length


def outcomes(
    dataset: Dataset, event: Int[np.ndarray, " T"], tasks: tuple[str, ...]
) -> tuple[Float32[np.ndarray, "T Y"], Float32[np.ndarray, "T Y"]]:
    """What happened at events, by task, and 1 where that is known (a rating may be missing), else 0."""
    value = np.zeros((len(event), len(tasks)), np.float32)
    known = np.ones_like(value)
    for y, task in enumerate(tasks):
        if task == "rating":
            assert dataset.events.rating is not None
            rating = dataset.events.rating[event]
            known[:, y] = ~np.isnan(rating)
            value[:, y] = np.nan_to_num(rating)
        else:
            assert dataset.events.action is not None
            value[:, y] = dataset.events.action[event] >> dataset.catalogue.actions.index(task) & 1
    return value, known


def labels(
    dataset: Dataset, following: Int[np.ndarray, " T"], scheme: TokenScheme
) -> Int[np.ndarray, " T"]:
    """What retrieval predicts: the item of these next events, or 0 where the action of one is not positive."""
    label = dataset.events.item[following]
    if scheme.positive_bit < 0:
        return label
    assert dataset.events.action is not None
    return np.where(dataset.events.action[following] >> scheme.positive_bit & 1, label, 0)


def action_code(dataset: Dataset, event: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """`Batch.action` of events: 1 + 2 * bits."""
    assert dataset.events.action is not None
    return 1 + 2 * dataset.events.action[event]


def fill_rows(
    dataset: Dataset,
    spans: Spans,
    row: Int[np.ndarray, " B"],
    column: Int[np.ndarray, " B"],
    *,
    num_rows: int,
    row_length: int,
    scheme: TokenScheme,
) -> Batch:
    """Rows [num_rows, row_length] that hold the token streams of `spans` at the given rows and columns."""
    event = spans.events()
    at = _places(dataset, spans, event, row * row_length + column, scheme)
    entry_value, entry_time = (a[at.entry] for a in _series(dataset))
    first_event = np.cumsum(spans.length) - spans.length
    began = dataset.events.timestamp[event[first_event]]
    tells_action = at.content + scheme.tokens_per_event - 1
    item, names_item = dataset.events.item[event], at.content
    if scheme.kind == "paired":
        item, names_item = np.tile(item, 2), np.append(at.content, tells_action)

    def rows(
        *pairs: tuple[np.ndarray, Any], dtype: Any = np.int32, width: tuple[int, ...] = ()
    ) -> Any:
        filled = np.zeros((num_rows * row_length, *width), dtype)
        for place, values in pairs:
            filled[place] = values
        return filled.reshape(num_rows, row_length, *width)

    def since_start(times: np.ndarray, owner: np.ndarray) -> np.ndarray:
        return np.clip(times - began[owner], 0, LATEST)

    entry_clock = at.entry_place, since_start(entry_time, at.entry_owner)
    clock = since_start(dataset.events.timestamp[event], at.owner)
    time = rows(entry_clock, (tells_action, clock), (at.content, clock))
    fields: dict[str, Any] = {"item": rows((names_item, item)), "time": time, "query_time": time}
    fields["position"] = rows((at.token, token_index(np.zeros_like(at.tokens), at.tokens)))
    fields["segment"] = rows((at.token, np.repeat(_rank_in_row(row, column), at.tokens)))
    if scheme.kind == "retrieval":
        following = spans.following()
        asked = since_start(dataset.events.timestamp[following], at.owner)
        fields["query_time"] = rows(entry_clock, (at.content, asked))
        fields["label"] = rows((at.content, labels(dataset, following, scheme)))
    else:
        value, known = outcomes(dataset, event, scheme.tasks)
        known = known * (event >= spans.first_label()[at.owner])[:, None]
        width = (len(scheme.tasks),)
        fields["outcome"] = rows((at.content, value * known), dtype=np.float32, width=width)
        fields["outcome_weight"] = rows((at.content, known), dtype=np.float32, width=width)
    if scheme.with_actions:
        code = action_code(dataset, event)
        if scheme.kind == "sum":  # of the event before; the first event of a sequence has none
            code = np.roll(code, 1)
            code[first_event] = 0
        fields["action"] = rows((tells_action, code))
    if dataset.catalogue.item_features is not None:
        side = dataset.catalogue.item_features[item]
        fields["side"] = rows((names_item, side), width=side.shape[1:])
    if scheme.num_user_features or scheme.max_series:
        prefix = (
            np.zeros((0, 0))
            if dataset.events.user_features is None
            else dataset.events.user_features[spans.user]
        )
        fields["feature"] = rows((at.entry_place, entry_value), (at.user_feature, prefix))
    return Batch(**fields)


def label_places(
    dataset: Dataset,
    spans: Spans,
    row: Int[np.ndarray, " B"],
    column: Int[np.ndarray, " B"],
    *,
    row_length: int,
    scheme: TokenScheme,
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"], Int[np.ndarray, " T"]]:
    """The labels of rows that `fill_rows` made: place of each (row * L + column), its event, its sequence."""
    event = spans.events()
    at = _places(dataset, spans, event, row * row_length + column, scheme)
    is_label = event >= spans.first_label()[at.owner]
    return at.content[is_label], event[is_label], at.owner[is_label]


def filler(dataset: Dataset, *, row_length: int, scheme: TokenScheme) -> Fill:
    """`fill_rows` of one dataset and stream."""
    return functools.partial(fill_rows, dataset, row_length=row_length, scheme=scheme)


class _Places(NamedTuple):
    """Where the tokens of several sequences stand, as flat indices into the rows."""

    owner: Int[np.ndarray, " T"]  # sequence of each event
    content: Int[np.ndarray, " T"]  # token of each event's item
    entry: Int[np.ndarray, " S"]  # index of each series entry in the dataset
    entry_owner: Int[np.ndarray, " S"]  # its sequence
    entry_place: Int[np.ndarray, " S"]  # its token
    user_feature: Int[np.ndarray, "B C"]  # tokens of the user features
    tokens: Int[np.ndarray, " B"]  # tokens of each sequence
    token: Int[np.ndarray, " tokens"]  # every token


def _places(
    dataset: Dataset, spans: Spans, event: np.ndarray, start: np.ndarray, scheme: TokenScheme
) -> _Places:
    """Merges events and series entries by time behind the prefix; an entry stands before the events of its time."""
    owner, nth = _owners(spans.length)
    first, count = series_range(dataset, spans, scheme.max_series)
    entry, (entry_owner, entry_nth) = token_index(first, count), _owners(count)
    events_before, entries_before = np.zeros_like(entry), np.zeros_like(event)
    if len(entry):
        times, entry_times = dataset.events.timestamp[event], _series(dataset)[1][entry]
        low = min(times.min(), entry_times.min())
        span = max(times.max(), entry_times.max()) - low + 1
        key, entry_key = owner * span + (times - low), entry_owner * span + (entry_times - low)
        events_before = (
            np.searchsorted(key, entry_key, "left")
            - (np.cumsum(spans.length) - spans.length)[entry_owner]
        )
        entries_before = (
            np.searchsorted(entry_key, key, "right") - (np.cumsum(count) - count)[owner]
        )
    lead, step = start + scheme.num_user_features, scheme.tokens_per_event
    tokens = scheme.num_user_features + count + step * spans.length
    return _Places(
        owner,
        lead[owner] + entries_before + step * nth,
        entry,
        entry_owner,
        lead[entry_owner] + entry_nth + step * events_before,
        start[:, None] + np.arange(scheme.num_user_features),
        tokens,
        token_index(start, tokens),
    )


def _owners(count: Int[np.ndarray, " B"]) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"]]:
    """For `count` things of each of B owners: the owner of each thing, and its number among the owner's."""
    return np.repeat(np.arange(len(count)), count), token_index(np.zeros_like(count), count)


def _series(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Values and times of all slow-series entries; empty where the dataset has none."""
    if dataset.events.series_value is None or dataset.events.series_time is None:
        return np.zeros(0, np.int32), np.zeros(0, np.int64)
    return dataset.events.series_value, dataset.events.series_time


def _rank_in_row(
    row: Int[np.ndarray, " B"], column: Int[np.ndarray, " B"]
) -> Int[np.ndarray, " B"]:
    """1 for the first sequence of a row, 2 for the second, .."""
    order = np.lexsort((column, row))
    first_of_row = np.searchsorted(row[order], row[order])
    rank = np.empty(len(row), np.int64)
    rank[order] = np.arange(len(row)) - first_of_row + 1
    return rank
