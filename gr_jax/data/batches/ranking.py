"""Batches of ranking by an encoder of sequences: which events train, which are judged, and where their tokens are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int

from gr_jax.config import Config
from gr_jax.data.batches import packing, tokenizer
from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.epochs import TrainBatches, plan_rows
from gr_jax.data.batches.sequences import Spans, label_spans, labels_between
from gr_jax.data.dataset import Dataset


@dataclass(frozen=True)
class Labels:
    """The events of a batch that are judged, T of them."""

    # where the prediction is: row * L + column, or index of the impression
    place: Int[np.ndarray, " T"]
    user: Int[np.ndarray, " T"]  # whose event it is
    history: Int[np.ndarray, " T"]  # events of the user before it, visible or not
    outcome: Float32[np.ndarray, "T Y"]  # what happened, by task
    known: Float32[np.ndarray, "T Y"]  # 1 where that is known, else 0


def train_rows(
    dataset: Dataset,
    config: Config,
    scheme: tokenizer.TokenScheme,
    before: int,
    *,
    device_multiple: int,
) -> TrainBatches:
    """Packed training batches in which every event before the time `before` is a label once an epoch."""
    first, last = labels_between(
        dataset.events.offsets,
        dataset.events.timestamp,
        int(dataset.events.timestamp.min()),
        before,
    )
    return plan_rows(
        dataset,
        label_spans(dataset.events.offsets, first, last, max_length=config.data.max_length),
        config.data,
        scheme,
        batch_users=config.train.batch_users,
        device_multiple=device_multiple,
        seed=config.seed,
    )


@dataclass(frozen=True, eq=False)
class LabelBatches:
    """The batches of an evaluation: every event of a stretch of time is judged once, from its past alone."""

    dataset: Dataset
    spans: Spans
    rows: packing.RowIndex
    scheme: tokenizer.TokenScheme
    row_length: int  # L
    batch_rows: int  # R

    def __len__(self) -> int:
        return -(-self.rows.packing.num_rows // self.batch_rows)

    def batch(self, index: int) -> tuple[Batch, Labels]:
        """Batch `index`: its rows, and the events judged in it."""
        chosen, row, column = self.rows.between(
            index * self.batch_rows, (index + 1) * self.batch_rows
        )
        spans, layout = (
            self.spans.take(chosen),
            {"row_length": self.row_length, "scheme": self.scheme},
        )
        batch = tokenizer.fill_rows(
            self.dataset, spans, row, column, num_rows=self.batch_rows, **layout
        )
        place, event, owner = tokenizer.label_places(self.dataset, spans, row, column, **layout)
        outcome, known = tokenizer.outcomes(self.dataset, event, self.scheme.tasks)
        return batch, Labels(place, spans.user[owner], event - spans.first[owner], outcome, known)


def label_rows(
    dataset: Dataset,
    config: Config,
    scheme: tokenizer.TokenScheme,
    low: int,
    high: int,
    *,
    device_multiple: int,
) -> LabelBatches:
    """Plans an evaluation of the events with low <= time < high."""
    first, last = labels_between(dataset.events.offsets, dataset.events.timestamp, low, high)
    spans = label_spans(dataset.events.offsets, first, last, max_length=config.data.max_length)
    packed = packing.pack(
        tokenizer.token_counts(dataset, spans, scheme=scheme), config.data.row_length
    )
    batch_rows = packing.rows_per_batch(
        packed, len(spans), config.evaluate.batch_users, device_multiple
    )
    return LabelBatches(
        dataset, spans, packing.RowIndex(packed), scheme, config.data.row_length, batch_rows
    )
