"""Evaluation batches of retrieval: every user of a split once, with what is not ranked."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from gr_jax.config import ConfigError, DataConfig, EvaluateConfig
from gr_jax.data.batches import packing, sequences, tokenizer
from gr_jax.data.batches.batch import Batch, Queries
from gr_jax.data.batches.packing import Slots, token_index
from gr_jax.data.batches.sequences import Spans
from gr_jax.data.batches.splits import Split
from gr_jax.data.dataset import Dataset


@dataclass(frozen=True, eq=False)
class EvaluationBatches:
    """The batches of a retrieval evaluation: every user of a split once, in a fixed order."""

    dataset: Dataset
    spans: Spans
    scheme: tokenizer.TokenScheme
    lengths: Int[np.ndarray, " B"]  # tokens of each sequence
    rows: packing.RowIndex
    row_length: int  # L
    batch_rows: int  # R
    exclude: str  # history | visible | none

    def __len__(self) -> int:
        return -(-self.rows.packing.num_rows // self.batch_rows)

    @functools.cached_property
    def _max_queries(self) -> int:
        return self.rows.max_sequences(self.batch_rows)

    def batch(self, index: int) -> tuple[Batch, Queries, Int[np.ndarray, " B"]]:
        """Batch `index`: its rows, its queries, and the users that ask, without padding."""
        first = index * self.batch_rows
        chosen, row, column = self.rows.between(first, first + self.batch_rows)
        spans, slots = self.spans.take(chosen), Slots(row, column, self.batch_rows, self.row_length)
        events, catalogue = self.dataset.events, self.dataset.catalogue
        batch = tokenizer.fill_rows(events, catalogue, spans, self.scheme, slots)
        token = slots.start + self.lengths[chosen] - 1  # the last event's
        target = events.item[spans.begin + spans.length]
        asked = (token, target, self._seen_items(spans))
        return batch, Queries(*map(self._pad, asked)), spans.user

    def history(self, users: Int[np.ndarray, " Q"]) -> Int[np.ndarray, " Q"]:
        """Events before the target of each of these users, visible to the model or not."""
        spans = self.spans.take(np.searchsorted(self.spans.user, users))
        return spans.begin + spans.length - spans.first

    def seen(self, spans: Spans) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
        """Flat indices of the first event whose item is not ranked, and of the target.

        The items of the events between them are left out of the ranking.
        """
        end = spans.begin + spans.length
        return {"history": spans.first, "visible": spans.begin, "none": end}[self.exclude], end

    def _pad(self, values: np.ndarray) -> Any:  # numpy, for fields that steps see as jax.Array
        """int32 values, 0-padded to the number of queries that all batches have room for."""
        missing = self._max_queries - len(values)
        return np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1)).astype(np.int32)

    def _seen_items(self, spans: Spans) -> Int[np.ndarray, "B S"]:
        """Item ids before each target, 0-padded to a power of two so that few shapes compile."""
        start, end = self.seen(spans)
        length = end - start
        width = 1 << int(max(length.max(), 1) - 1).bit_length()
        seen = np.zeros((len(spans), width), np.int32)
        user, place = np.repeat(np.arange(len(spans)), length), token_index(0 * length, length)
        seen[user, place] = self.dataset.events.item[token_index(start, length)]
        return seen


def evaluation_batches(
    dataset: Dataset,
    config: DataConfig,
    evaluate: EvaluateConfig,
    split: Split,
    scheme: tokenizer.TokenScheme = tokenizer.ITEMS,
    *,
    device_multiple: int = 1,
) -> EvaluationBatches:
    """The evaluation of `split`: of validation on `evaluate.valid_users`, if that is not 0.

    Users whose held-out event is no label (its action is not positive) are left out.

    Raises:
      ConfigError: no user is left.
    """
    events = dataset.events
    spans = sequences.spans(events, evaluate, split, max_length=config.max_length)
    if scheme.positive_bit >= 0:
        assert events.action is not None
        is_label = events.action[spans.last_event + 1] >> scheme.positive_bit & 1
        spans = spans.take(np.flatnonzero(is_label))
        if len(spans) == 0:
            name = dataset.catalogue.actions[scheme.positive_bit]
            raise ConfigError(
                f"config.loss.positive={name!r}: the {split} event of no user has this action, so"
                " there is nothing to evaluate; choose an action that happens, or '' to predict"
                " every event"
            )
    sample = evaluate.valid_users if split == "valid" else 0  # the test is on all
    if 0 < sample < len(spans):
        chosen = np.random.default_rng(0).choice(len(spans), sample, replace=False)
        spans = spans.take(np.sort(chosen))

    lengths = tokenizer.token_counts(events, spans, scheme)
    rows = packing.RowIndex(packing.pack(lengths, config.row_length))
    users = evaluate.batch_users
    batch_rows = packing.rows_per_batch(rows.packing, len(spans), users, device_multiple)
    return EvaluationBatches(
        dataset, spans, scheme, lengths, rows, config.row_length, batch_rows, evaluate.exclude
    )
