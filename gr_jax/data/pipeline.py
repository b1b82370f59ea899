"""Packed batches as a random-access Grain dataset: batch i is a pure function of (seed, i), whatever the processes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Int

from gr_jax.config import DataConfig
from gr_jax.data import packing, sequences
from gr_jax.data.batch import Batch, Queries
from gr_jax.data.dataset import Dataset

LATEST = np.iinfo(np.int32).max  # seconds; times inside a sequence count from its first event and end here (68 years)


def fill_rows(
    dataset: Dataset,
    spans: sequences.Spans,
    row: Int[np.ndarray, " B"],
    column: Int[np.ndarray, " B"],
    *,
    num_rows: int,
    row_length: int,
) -> Batch:
    """Rows [num_rows, row_length] that hold the sequences `spans` at the given rows and columns."""
    source = packing.token_index(spans.begin, spans.length)
    place = packing.token_index(row * row_length + column, spans.length)
    start = np.repeat(dataset.timestamp[spans.begin], spans.length)

    def rows(values: np.ndarray) -> Any:
        filled = np.zeros(num_rows * row_length, np.int32)
        filled[place] = values
        return filled.reshape(num_rows, row_length)

    order = np.lexsort((column, row))
    rank_in_row = np.empty(len(spans), np.int64)
    first_of_row = np.searchsorted(row[order], row[order])
    rank_in_row[order] = np.arange(len(spans)) - first_of_row + 1
    return Batch(
        item=rows(dataset.item[source]),
        time=rows(np.minimum(dataset.timestamp[source] - start, LATEST)),
        query_time=rows(np.minimum(dataset.timestamp[source + 1] - start, LATEST)),
        position=rows(source - np.repeat(spans.begin, spans.length)),
        segment=rows(np.repeat(rank_in_row, spans.length)),
        label=rows(dataset.item[source + 1]),
    )


@dataclass(frozen=True, eq=False)
class TrainRows:
    """The batches of a training run: `batch(i)` for i from 0, epoch after epoch."""

    dataset: Dataset
    spans: sequences.Spans
    packing: packing.Packing
    row_length: int  # L
    batch_rows: int  # R, rows of a global batch
    steps_per_epoch: int
    seed: int

    @property
    def fill(self) -> float:
        """Real tokens per token computed."""
        return float(self.spans.length.sum()) / (self.steps_per_epoch * self.batch_rows * self.row_length)

    @functools.lru_cache(maxsize=2)  # noqa: B019  two epochs: prefetch reaches into the next one
    def _epoch(self, epoch: int) -> tuple[packing.Packing, np.ndarray, np.ndarray]:
        plan = packing.shuffle(self.packing, self.spans.length, np.random.default_rng((self.seed, epoch)))
        by_row = np.argsort(plan.row, kind="stable")
        return plan, by_row, plan.row[by_row]

    def batch(self, index: int, *, process: int = 0, processes: int = 1) -> Batch:
        """Batch `index` of the run: this process's share of its rows, [R / processes, L]."""
        epoch, k = divmod(index, self.steps_per_epoch)
        plan, by_row, sorted_rows = self._epoch(epoch)
        share = self.batch_rows // processes
        first_row = k * self.batch_rows + process * share
        low, high = np.searchsorted(sorted_rows, (first_row, first_row + share))
        chosen = by_row[low:high]
        return fill_rows(
            self.dataset,
            self.spans.take(chosen),
            plan.row[chosen] - first_row,
            plan.column[chosen],
            num_rows=share,
            row_length=self.row_length,
        )


def train_rows(
    dataset: Dataset, config: DataConfig, *, batch_users: int, row_multiple: int = 1, seed: int = 0
) -> TrainRows:
    """Plans the training batches: rows per batch so that a batch holds `batch_users` users on average.

    Args:
      dataset: the prepared log.
      config: max_length N and row_length L.
      batch_users: mean users in a global batch.
      row_multiple: R is a multiple of this: the devices that rows are shared among.
      seed: of the shuffles.
    """
    spans = sequences.spans(dataset.offsets, "train", max_length=config.max_length)
    packed = packing.pack(spans.length, config.row_length)
    steps = max(1, round(len(spans) / batch_users))
    batch_rows = -(-packed.num_rows // steps)
    batch_rows = -(-batch_rows // row_multiple) * row_multiple
    steps = -(-packed.num_rows // batch_rows)
    return TrainRows(dataset, spans, packed, config.row_length, batch_rows, steps, seed)


def train_batches(rows: TrainRows, first: int, last: int) -> grain.DatasetIterator:
    """Iterator over batches `first` to `last` - 1 of the run, this process's rows of each; reads ahead in a thread.

    The number of the next batch is all its state: resuming is starting at `first`, on any number of processes.
    """
    read = functools.partial(rows.batch, process=jax.process_index(), processes=jax.process_count())
    dataset = grain.MapDataset.range(first, last).map(read)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


@dataclass(frozen=True, eq=False)
class EvaluationRows:
    """The batches of an evaluation: every user of a split once, in a fixed order."""

    dataset: Dataset
    spans: sequences.Spans
    packing: packing.Packing
    row_length: int  # L
    batch_rows: int  # R
    exclude: str  # history | visible | none

    def __len__(self) -> int:
        return -(-self.packing.num_rows // self.batch_rows)

    @functools.cached_property
    def _by_row(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.packing.row, kind="stable")
        return order, self.packing.row[order]

    @functools.cached_property
    def _max_queries(self) -> int:
        edges = np.arange(len(self) + 1) * self.batch_rows
        return int(np.diff(np.searchsorted(self._by_row[1], edges)).max())

    def batch(self, index: int) -> tuple[Batch, Queries, Int[np.ndarray, " B"]]:
        """Batch `index`: its rows, its queries, and the users that ask (as many as queries that are not padding)."""
        order, sorted_rows = self._by_row
        first_row = index * self.batch_rows
        low, high = np.searchsorted(sorted_rows, (first_row, first_row + self.batch_rows))
        chosen = order[low:high]
        spans = self.spans.take(chosen)
        row, column = self.packing.row[chosen] - first_row, self.packing.column[chosen]
        batch = fill_rows(self.dataset, spans, row, column, num_rows=self.batch_rows, row_length=self.row_length)
        token = row * self.row_length + column + spans.length - 1
        target = self.dataset.item[spans.begin + spans.length]
        queries = Queries(*(self._pad(values) for values in (token, target, self._seen(spans))))
        return batch, queries, spans.user

    def _pad(self, values: np.ndarray) -> Any:
        """int32, with zeros up to the number of queries that all batches have room for."""
        missing = self._max_queries - len(values)
        return np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1)).astype(np.int32)

    def _seen(self, spans: sequences.Spans) -> Int[np.ndarray, "B S"]:
        """Item ids before each target, 0-padded to a power of two so that few shapes are compiled."""
        end = spans.begin + spans.length
        start = {"history": spans.first, "visible": spans.begin, "none": end}[self.exclude]
        length = end - start
        width = 1 << int(max(length.max(), 1) - 1).bit_length()
        seen = np.zeros((len(spans), width), np.int32)
        user = np.repeat(np.arange(len(spans)), length)
        seen[user, packing.token_index(np.zeros_like(length), length)] = self.dataset.item[
            packing.token_index(start, length)
        ]
        return seen


def evaluation_rows(
    dataset: Dataset,
    config: DataConfig,
    split: sequences.Split,
    *,
    batch_users: int,
    exclude: str,
    sample: int = 0,
    row_multiple: int = 1,
) -> EvaluationRows:
    """Plans the evaluation of `split`, on a fixed random sample of `sample` users, or on all of them with 0."""
    spans = sequences.spans(dataset.offsets, split, max_length=config.max_length)
    if 0 < sample < len(spans):
        spans = spans.take(np.sort(np.random.default_rng(0).choice(len(spans), sample, replace=False)))
    packed = packing.pack(spans.length, config.row_length)
    batches = max(1, round(len(spans) / batch_users))
    batch_rows = -(-packed.num_rows // batches)
    batch_rows = -(-batch_rows // row_multiple) * row_multiple
    return EvaluationRows(dataset, spans, packed, config.row_length, batch_rows, exclude)
