"""Batches of ranking by an encoder of sequences: which events train, and which are evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from gr_jax.config import Config
from gr_jax.data.batches import packing, tokenizer
from gr_jax.data.batches.batch import Batch, Impressions, Labels
from gr_jax.data.batches.epochs import TrainBatches, plan_batches
from gr_jax.data.batches.packing import Slots
from gr_jax.data.batches.sequences import Spans, label_spans, labels_between
from gr_jax.data.dataset import Dataset


@runtime_checkable
class LabelPlan(Protocol):
    """The batches of a ranking evaluation, of sequences or of impressions."""

    def __len__(self) -> int:
        """Number of batches."""
        ...

    def batch(self, index: int) -> tuple[Batch | Impressions, Labels]:
        """Batch `index`, and the events evaluated in it."""
        ...


def training_batches(
    dataset: Dataset,
    config: Config,
    scheme: tokenizer.TokenScheme,
    before: int,
    *,
    shards: int,
) -> TrainBatches:
    """Training batches in which every event before the time `before` is a label once an epoch."""
    begin = int(dataset.events.timestamp.min())
    return plan_batches(
        dataset,
        _spans_between(dataset, begin, before, max_length=config.data.max_length),
        config.data,
        scheme,
        batch_users=config.train.batch_users,
        shards=shards,
        seed=config.seed,
    )


@dataclass(frozen=True, eq=False)
class LabelBatches:
    """The batches of an evaluation: every event of a stretch of time once, from its past alone."""

    dataset: Dataset
    spans: Spans
    rows: packing.RowIndex
    scheme: tokenizer.TokenScheme
    row_length: int  # L
    batch_rows: int  # R

    def __len__(self) -> int:
        return -(-self.rows.packing.num_rows // self.batch_rows)

    def batch(self, index: int) -> tuple[Batch, Labels]:
        """Batch `index`: its rows, and the events evaluated in it."""
        first = index * self.batch_rows
        chosen, row, column = self.rows.between(first, first + self.batch_rows)
        spans, slots = self.spans.take(chosen), Slots(row, column, self.batch_rows, self.row_length)
        events, catalogue, scheme = self.dataset.events, self.dataset.catalogue, self.scheme
        batch = tokenizer.fill_rows(events, catalogue, spans, scheme, slots)
        place, event, owner = tokenizer.label_places(events, spans, scheme, slots)
        outcome, known = tokenizer.outcomes(events, catalogue, event, scheme.tasks)
        return batch, Labels(place, spans.user[owner], event - spans.first[owner], outcome, known)


def label_batches(
    dataset: Dataset,
    config: Config,
    scheme: tokenizer.TokenScheme,
    low: int,
    high: int,
    *,
    device_multiple: int,
) -> LabelBatches:
    """An evaluation of the events with low <= time < high."""
    data, batch_users = config.data, config.evaluate.batch_users
    spans = _spans_between(dataset, low, high, max_length=data.max_length)
    counts = tokenizer.token_counts(dataset.events, spans, scheme)
    packed = packing.pack(counts, data.row_length)
    batch_rows = packing.rows_per_batch(packed, len(spans), batch_users, device_multiple)
    rows = packing.RowIndex(packed)
    return LabelBatches(dataset, spans, rows, scheme, data.row_length, batch_rows)


def _spans_between(dataset: Dataset, low: int, high: int, *, max_length: int) -> Spans:
    """Sequences in which each event with low <= time < high is a label once."""
    offsets, timestamp = dataset.events.offsets, dataset.events.timestamp
    first, last = labels_between(offsets, timestamp, low, high)
    return label_spans(offsets, first, last, max_length=max_length)
