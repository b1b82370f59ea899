"""Batches of single events, each with the history before it: how a model without sequence labels trains."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from gr_jax.config import Config
from gr_jax.data.batches import tokenizer
from gr_jax.data.batches.batch import Impressions
from gr_jax.data.batches.ranking import Labels
from gr_jax.data.batches.share import WHOLE, Share
from gr_jax.data.dataset import Dataset


def fill_impressions(
    dataset: Dataset,
    event: Int[np.ndarray, " T"],
    *,
    size: int,
    max_length: int,
    scheme: tokenizer.TokenScheme,
    item_side: Any,
) -> Impressions:
    """The events `event` and the at most `max_length` events before each, padded to `size` impressions.

    `item_side` is handed on.
    """
    user = dataset.events.users_of(event)
    index = event[:, None] - max_length + np.arange(max_length)
    seen = index >= dataset.events.offsets[user][:, None]
    past = np.where(seen, index, 0)
    age = dataset.events.timestamp[event][:, None] - dataset.events.timestamp[past]
    item, history_item = dataset.events.item[event], np.where(seen, dataset.events.item[past], 0)
    outcome, known = tokenizer.outcomes(dataset, event, scheme.tasks)

    def padded(values: np.ndarray | None) -> Any:
        if values is None:
            return None
        dtype = np.float32 if values.dtype.kind == "f" else np.int32
        return np.pad(values, [(0, size - len(values))] + [(0, 0)] * (values.ndim - 1)).astype(
            dtype
        )

    return Impressions(
        item=padded(item),
        feature=padded(_user_values(dataset, user, dataset.events.timestamp[event], scheme)),
        history_item=padded(history_item),
        history_action=padded(np.where(seen, tokenizer.action_code(dataset, past), 0)),
        history_age=padded(np.where(seen, np.clip(age, 0, tokenizer.LATEST), 0)),
        outcome=padded(outcome * known),
        outcome_weight=padded(known),
        item_side=item_side,
    )


def item_side_rows(dataset: Dataset, rows: int) -> Int[np.ndarray, "rows F"] | None:
    """Feature values of every item, padded to `rows` rows; None where items have none."""
    side = dataset.catalogue.item_features
    return None if side is None else np.pad(side, [(0, rows - len(side)), (0, 0)])


def _user_values(
    dataset: Dataset, user: np.ndarray, time: np.ndarray, scheme: tokenizer.TokenScheme
) -> np.ndarray | None:
    """[T, C + series]: the user's attributes, then the latest slow-series entries at the time, in their order."""
    parts = []
    if dataset.events.user_features is not None:
        parts.append(dataset.events.user_features[user])
    if scheme.max_series:
        values = dataset.events.series_value
        assert values is not None
        first, count = tokenizer.series_known(dataset, user, time, scheme.max_series)
        nth = count[:, None] - scheme.max_series + np.arange(scheme.max_series)
        latest = np.zeros(nth.shape, values.dtype)
        row, column = np.nonzero(nth >= 0)
        latest[row, column] = values[first[row] + nth[row, column]]
        parts.append(latest)
    return np.concatenate(parts, axis=1) if parts else None


@dataclass(frozen=True, eq=False)
class ImpressionBatches:
    """Training batches of single events: shuffled epochs of them, or one pass over consecutive windows of time."""

    dataset: Dataset
    scheme: tokenizer.TokenScheme
    # events of each epoch in turn; one = the same events every epoch
    windows: tuple[Int[np.ndarray, " _"], ...]
    batch_size: int  # B
    max_length: int  # N
    shuffled: bool
    seed: int
    item_side: Int[np.ndarray, "rows F"] | None = None

    @functools.lru_cache(maxsize=2)  # noqa: B019  two epochs: prefetch reaches into the next one
    def _events(self, epoch: int) -> Int[np.ndarray, " T"]:
        events = self.windows[epoch % len(self.windows)]
        return (
            np.random.default_rng((self.seed, epoch)).permutation(events)
            if self.shuffled
            else events
        )

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
        """Batch `index` of the run: a share of its events, [B / count]."""
        epoch, k = self.locate(index)
        first, last, size = share.of(self.batch_size)
        side = self.item_side
        if side is not None:  # the same share of its rows
            side = np.split(side, share.count)[share.index]
        return fill_impressions(
            self.dataset,
            self._events(epoch)[k * self.batch_size + first : k * self.batch_size + last],
            size=size,
            max_length=self.max_length,
            scheme=self.scheme,
            item_side=side,
        )


@dataclass(frozen=True, eq=False)
class LabelImpressionBatches:
    """The batches of an evaluation: every event of `events` is judged once, from its past alone."""

    dataset: Dataset
    scheme: tokenizer.TokenScheme
    events: Int[np.ndarray, " T"]
    batch_size: int  # B
    max_length: int  # N
    item_side: Int[np.ndarray, "rows F"] | None = None

    def __len__(self) -> int:
        return -(-len(self.events) // self.batch_size)

    def batch(self, index: int) -> tuple[Impressions, Labels]:
        """Batch `index`: its impressions, and the events judged in it."""
        event = self.events[index * self.batch_size : (index + 1) * self.batch_size]
        user = self.dataset.events.users_of(event)
        outcome, known = tokenizer.outcomes(self.dataset, event, self.scheme.tasks)
        labels = Labels(
            np.arange(len(event)), user, event - self.dataset.events.offsets[user], outcome, known
        )
        batch = fill_impressions(
            self.dataset,
            event,
            size=self.batch_size,
            max_length=self.max_length,
            scheme=self.scheme,
            item_side=self.item_side,
        )
        return batch, labels


def events_between(dataset: Dataset, low: int, high: int) -> Int[np.ndarray, " T"]:
    """Flat indices of the events with low <= time < high, in the order of time."""
    inside = np.flatnonzero((dataset.events.timestamp >= low) & (dataset.events.timestamp < high))
    return inside[np.argsort(dataset.events.timestamp[inside], kind="stable")]


def impression_size(config: Config, device_multiple: int) -> int:
    """B: `train.batch_users` events, rounded up to a multiple of the devices."""
    return -(-config.train.batch_users // device_multiple) * device_multiple
