"""Batches of single events, each with the history before it, for models without sequences."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from gr_jax.config import Config
from gr_jax.data.batches import tokenizer
from gr_jax.data.batches.batch import WHOLE, Impressions, Labels, Share
from gr_jax.data.dataset import Catalogue, Dataset, Events


def fill_impressions(
    events: Events,
    catalogue: Catalogue,
    event: Int[np.ndarray, " T"],
    scheme: tokenizer.TokenScheme,
    *,
    size: int,
    max_length: int,
) -> Impressions:
    """Impressions of `event` with at most `max_length` events before each, padded to `size`.

    `catalogue_features` is left out: it is the same in every batch.
    """
    user = events.users_of(event)
    index = event[:, None] - max_length + np.arange(max_length)
    seen = index >= events.offsets[user][:, None]
    past = np.where(seen, index, 0)
    age = events.timestamp[event][:, None] - events.timestamp[past]
    outcome, known = tokenizer.outcomes(events, catalogue, event, scheme.tasks)
    features = _user_features(events, user, events.timestamp[event], scheme)
    return Impressions(
        item=_padded(events.item[event], size),
        user_features=None if features is None else _padded(features, size),
        history_item=_padded(np.where(seen, events.item[past], 0), size),
        history_action=_padded(np.where(seen, tokenizer.action_code(events, past), 0), size),
        history_age=_padded(np.where(seen, np.clip(age, 0, tokenizer.LATEST), 0), size),
        outcome=_padded(outcome * known, size),
        outcome_weight=_padded(known, size),
    )


def item_feature_table(dataset: Dataset, entries: int) -> Int[np.ndarray, "entries F"] | None:
    """Features of every item, 0-padded to `entries` of a table; None where items have none."""
    table = dataset.catalogue.item_features
    return None if table is None else np.pad(table, [(0, entries - len(table)), (0, 0)])


def _padded(values: np.ndarray, size: int) -> Any:  # numpy, for fields that steps see as jax.Array
    """Values as float32 or int32, with zeros up to `size`."""
    dtype = np.float32 if values.dtype.kind == "f" else np.int32
    widths = [(0, size - len(values))] + [(0, 0)] * (values.ndim - 1)
    return np.pad(values, widths).astype(dtype)


def _user_features(
    events: Events, user: np.ndarray, time: np.ndarray, scheme: tokenizer.TokenScheme
) -> Int[np.ndarray, "T values"] | None:
    """User attributes, then the latest slow-series entries at the time, in their order."""
    parts = []
    if events.user_features is not None:
        parts.append(events.user_features[user])
    if scheme.max_series:
        values = events.series_value
        assert values is not None
        first, count = tokenizer.series_known(events, user, time, scheme.max_series)
        nth = count[:, None] - scheme.max_series + np.arange(scheme.max_series)
        latest = np.zeros(nth.shape, values.dtype)
        row, column = np.nonzero(nth >= 0)
        latest[row, column] = values[first[row] + nth[row, column]]
        parts.append(latest)
    return np.concatenate(parts, axis=1) if parts else None


@dataclass(frozen=True, eq=False)
class ImpressionBatches:
    """Training batches of single events: shuffled epochs, or one pass over windows of time."""

    dataset: Dataset
    scheme: tokenizer.TokenScheme
    # events of each epoch, from the first again after the last; one = the same every epoch
    windows: tuple[Int[np.ndarray, " _"], ...]
    batch_size: int  # B
    max_length: int  # N
    shuffled: bool
    seed: int
    catalogue_features: Int[np.ndarray, "entries F"] | None = None

    @functools.lru_cache(maxsize=2)  # noqa: B019  two epochs: prefetch reaches into the next one
    def _events(self, epoch: int) -> Int[np.ndarray, " T"]:
        events = self.windows[epoch % len(self.windows)]
        if not self.shuffled:
            return events
        return np.random.default_rng((self.seed, epoch)).permutation(events)

    def first_step(self, epoch: int) -> int:
        """Number of the first batch of an epoch."""
        steps = [-(-len(window) // self.batch_size) for window in self.windows]
        rounds, rest = divmod(epoch, len(steps))
        return rounds * sum(steps) + sum(steps[:rest])

    def locate(self, step: int) -> tuple[int, int]:
        """Epoch of batch `step`, and its number in the epoch."""
        epoch = step // self.first_step(len(self.windows)) * len(self.windows)
        while self.first_step(epoch + 1) <= step:
            epoch += 1
        return epoch, step - self.first_step(epoch)

    def batch(self, index: int, share: Share = WHOLE) -> Impressions:
        """A share of batch `index` of the run, [B / count]."""
        epoch, k = self.locate(index)
        first, last, size = share.of(self.batch_size)
        first, last = k * self.batch_size + first, k * self.batch_size + last
        batch = fill_impressions(
            self.dataset.events,
            self.dataset.catalogue,
            self._events(epoch)[first:last],
            self.scheme,
            size=size,
            max_length=self.max_length,
        )
        table = self.catalogue_features
        if table is not None:  # the same share of its entries
            table = np.split(table, share.count)[share.index]
        return dataclasses.replace(batch, catalogue_features=table)


@dataclass(frozen=True, eq=False)
class LabelImpressionBatches:
    """The batches of an evaluation: every event of `events` once, from its past alone."""

    dataset: Dataset
    scheme: tokenizer.TokenScheme
    events: Int[np.ndarray, " T"]
    batch_size: int  # B
    max_length: int  # N
    catalogue_features: Int[np.ndarray, "entries F"] | None = None

    def __len__(self) -> int:
        return -(-len(self.events) // self.batch_size)

    def batch(self, index: int) -> tuple[Impressions, Labels]:
        """Batch `index`: its impressions, and the events evaluated in it."""
        event = self.events[index * self.batch_size : (index + 1) * self.batch_size]
        events, catalogue, scheme = self.dataset.events, self.dataset.catalogue, self.scheme
        user = events.users_of(event)
        outcome, known = tokenizer.outcomes(events, catalogue, event, scheme.tasks)
        history = event - events.offsets[user]
        labels = Labels(np.arange(len(event)), user, history, outcome, known)
        size, max_length = self.batch_size, self.max_length
        batch = fill_impressions(events, catalogue, event, scheme, size=size, max_length=max_length)
        return dataclasses.replace(batch, catalogue_features=self.catalogue_features), labels


def events_between(events: Events, low: int, high: int) -> Int[np.ndarray, " T"]:
    """Flat indices of the events with low <= time < high, in the order of time."""
    inside = np.flatnonzero((events.timestamp >= low) & (events.timestamp < high))
    return inside[np.argsort(events.timestamp[inside], kind="stable")]


def impression_size(config: Config, device_multiple: int) -> int:
    """B: `train.batch_users` events, rounded up to a multiple of the devices."""
    return -(-config.train.batch_users // device_multiple) * device_multiple
