"""Packed batches as a random-access Grain dataset: batch i is a pure function of (seed, i), whatever the processes."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.batches import packing, sequences, stochastic_length, tokenizer
from gr_jax.data.batches.batch import Batch, Queries
from gr_jax.data.batches.sequences import Spans
from gr_jax.data.batches.share import WHOLE, Share
from gr_jax.data.dataset import Dataset


@runtime_checkable
class TrainPlan(Protocol):
    """The batches of a training run: what the training loop needs to know of them."""

    def first_step(self, epoch: int) -> int:
        """Number of the first batch of an epoch."""
        ...

    def locate(self, step: int) -> tuple[int, int]:
        """Epoch of batch `step`, and its number in the epoch."""
        ...

    def batch(self, index: int, share: Share) -> Any:
        """Batch `index` of the run: a share of it."""
        ...


@dataclass(frozen=True)
class Epoch:
    """One pass: the sequences as they are this time, and where each lies."""

    spans: Spans
    rows: packing.RowIndex

    @property
    def num_rows(self) -> int:
        """Rows that the pass fills."""
        return self.rows.packing.num_rows


Cut = Callable[[Spans, int], Spans]  # the sequences as an epoch sees them: Stochastic Length


@dataclass(frozen=True, eq=False)
class TrainBatches:
    """Packed batches `batch(i)` for i from 0, shuffled epoch after epoch."""

    spans: Spans
    count: Callable[[Spans], Int[np.ndarray, " B"]]  # tokens of each sequence
    make: tokenizer.Fill
    packing: packing.Packing  # of the uncut sequences
    row_length: int  # L
    batch_rows: int  # R, rows of a global batch
    seed: int
    cut: Cut | None = None
    shards: int = 1  # equal parts of a batch, on different devices, whose costs are evened out
    _first_steps: list[int] = field(default_factory=lambda: [0])
    # the reading thread plans ahead too
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def fill(self) -> float:
        """Real tokens per token computed, in the first epoch."""
        real = float(self.count(self.epoch(0).spans).sum())
        return real / (self.steps(0) * self.batch_rows * self.row_length)

    @functools.lru_cache(maxsize=2)  # noqa: B019  two epochs: prefetch reaches into the next one
    def epoch(self, epoch: int) -> Epoch:
        """The sequences of an epoch and their places."""
        spans, lengths, shuffled = self._shuffled(epoch)
        return Epoch(
            spans,
            packing.RowIndex(
                packing.balance(shuffled, causal_pairs(lengths), self.batch_rows, self.shards)
            ),
        )

    def _shuffled(self, epoch: int) -> tuple[Spans, Int[np.ndarray, " B"], packing.Packing]:
        spans = self.spans if self.cut is None else self.cut(self.spans, epoch)
        lengths = self.count(spans)
        packed = self.packing if self.cut is None else packing.pack(lengths, self.row_length)
        return (
            spans,
            lengths,
            packing.shuffle(packed, lengths, np.random.default_rng((self.seed, epoch))),
        )

    def imbalance(self, *, token_cost: float, pair_cost: float) -> tuple[float, float]:
        """`packing.imbalance` of the first epoch before its rows were ordered and as it is.

        token_cost: of a token, padding or not; pair_cost: of a query and a key that it sees.
        """
        _, lengths, shuffled = self._shuffled(0)
        orders = (shuffled, self.epoch(0).rows.packing)
        cost, row_cost = pair_cost * causal_pairs(lengths), token_cost * self.row_length
        before, after = (
            packing.imbalance(order, cost, self.batch_rows, self.shards, row_cost=row_cost)
            for order in orders
        )
        return before, after

    def steps(self, epoch: int) -> int:
        """Batches of an epoch; all have equally many unless histories are cut."""
        num_rows = self.packing.num_rows if self.cut is None else self.epoch(epoch).num_rows
        return -(-num_rows // self.batch_rows)

    def first_step(self, epoch: int) -> int:
        """Number of the first batch of an epoch."""
        if self.cut is None:
            return epoch * self.steps(0)
        with self._lock:
            while len(self._first_steps) <= epoch:
                self._first_steps.append(
                    self._first_steps[-1] + self.steps(len(self._first_steps) - 1)
                )
        return self._first_steps[epoch]

    def locate(self, step: int) -> tuple[int, int]:
        """Epoch of batch `step`, and its number in the epoch."""
        if self.cut is None:
            return divmod(step, self.steps(0))
        while self._first_steps[-1] <= step:
            self.first_step(len(self._first_steps))
        epoch = bisect.bisect_right(self._first_steps, step) - 1
        return epoch, step - self.first_step(epoch)

    def batch(self, index: int, share: Share = WHOLE) -> Batch:
        """Batch `index` of the run: a share of its rows, [R / count, L]."""
        number, k = self.locate(index)
        epoch, (first, last, size) = self.epoch(number), share.of(self.batch_rows)
        chosen, row, column = epoch.rows.between(
            k * self.batch_rows + first, k * self.batch_rows + last
        )
        return self.make(epoch.spans.take(chosen), row=row, column=column, num_rows=size)


def causal_pairs(lengths: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
    """Pairs of a query and a key that it sees, in sequences of these lengths: what attention costs."""
    return lengths.astype(np.int64) * (lengths.astype(np.int64) + 1) // 2


def plan_rows(
    dataset: Dataset,
    spans: Spans,
    config: DataConfig,
    scheme: tokenizer.TokenScheme,
    *,
    batch_users: int,
    device_multiple: int,
    seed: int,
) -> TrainBatches:
    """Plans training batches of `spans`: rows per batch so that a batch holds `batch_users` sequences on average.

    Args:
      dataset: the prepared log.
      spans: the sequences that train.
      config: max_length N, row_length L and Stochastic Length.
      stream: how events become tokens.
      batch_users: mean sequences in a global batch.
      device_multiple: the devices that rows are shared among: R is a multiple of this, and each
        gets about equal work.
      seed: of the shuffles and cuts.
    """
    count = functools.partial(tokenizer.token_counts, dataset, scheme=scheme)
    make = tokenizer.filler(dataset, row_length=config.row_length, scheme=scheme)
    cut = None
    if config.stochastic_length_alpha < 2:
        cut = functools.partial(_cut, timestamp=dataset.events.timestamp, config=config, seed=seed)
    whole = packing.pack(count(spans), config.row_length)
    rows = TrainBatches(spans, count, make, whole, config.row_length, 1, seed, cut)
    first = rows.epoch(0).rows.packing
    batch_rows = packing.rows_per_batch(first, len(spans), batch_users, device_multiple)
    return dataclasses.replace(rows, batch_rows=batch_rows, shards=device_multiple)


def _cut(
    spans: Spans, epoch: int, *, timestamp: Int[np.ndarray, " E"], config: DataConfig, seed: int
) -> Spans:
    """The sequences as an epoch sees them under Stochastic Length."""
    kept, length = stochastic_length.choose(
        spans.begin,
        spans.length,
        timestamp,
        spans.user,
        max_length=config.max_length,
        alpha=config.stochastic_length_alpha,
        selection=config.stochastic_length_selection,  # type: ignore[arg-type]
        seed=seed,
        epoch=epoch,
    )
    begin, end = np.cumsum(length) - length, spans.begin + spans.length
    return dataclasses.replace(
        spans, begin=begin, length=length.astype(np.int32), kept=kept, end=end
    )


def train_rows(
    dataset: Dataset,
    config: DataConfig,
    scheme: tokenizer.TokenScheme = tokenizer.ITEMS,
    *,
    batch_users: int,
    device_multiple: int = 1,
    seed: int = 0,
) -> TrainBatches:
    """Plans the training batches of retrieval; arguments as of `plan_rows`."""
    spans = sequences.spans(dataset.events.offsets, "train", max_length=config.max_length)
    return plan_rows(
        dataset,
        spans,
        config,
        scheme,
        batch_users=batch_users,
        device_multiple=device_multiple,
        seed=seed,
    )


def train_batches(
    plan: TrainPlan, first: int, last: int, share: Share = WHOLE
) -> grain.DatasetIterator:
    """Iterator over batches `first` to `last` - 1 of the run, a share of each; reads ahead in a thread.

    The number of the next batch is all its state: resuming is starting at `first`, on any number of processes.
    """
    read = functools.partial(plan.batch, share=share)
    dataset = grain.MapDataset.range(first, last).map(read)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


@dataclass(frozen=True, eq=False)
class EvaluationBatches:
    """The batches of a retrieval evaluation: every user of a split once, in a fixed order."""

    dataset: Dataset
    spans: Spans
    make: tokenizer.Fill
    lengths: Int[np.ndarray, " B"]  # tokens of each sequence
    rows: packing.RowIndex
    row_length: int  # L
    batch_rows: int  # R
    exclude: str  # history | visible | none

    def __len__(self) -> int:
        return -(-self.rows.packing.num_rows // self.batch_rows)

    @functools.cached_property
    def _max_queries(self) -> int:
        return self.rows.most_sequences(self.batch_rows)

    def batch(self, index: int) -> tuple[Batch, Queries, Int[np.ndarray, " B"]]:
        """Batch `index`: its rows, its queries, and the users that ask (as many as queries that are not padding)."""
        chosen, row, column = self.rows.between(
            index * self.batch_rows, (index + 1) * self.batch_rows
        )
        spans = self.spans.take(chosen)
        batch = self.make(spans, row=row, column=column, num_rows=self.batch_rows)
        token = row * self.row_length + column + self.lengths[chosen] - 1  # the last event's
        target = self.dataset.events.item[spans.begin + spans.length]
        queries = Queries(
            *(self._pad(values) for values in (token, target, self._seen_items(spans)))
        )
        return batch, queries, spans.user

    def history(self, users: Int[np.ndarray, " Q"]) -> Int[np.ndarray, " Q"]:
        """Events before the target of each of these users, visible to the model or not."""
        spans = self.spans.take(np.searchsorted(self.spans.user, users))
        return spans.begin + spans.length - spans.first

    def seen(self, spans: Spans) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
        """Flat indices of the first event whose item is not ranked, and of the target: those between are left out."""
        end = spans.begin + spans.length
        return {"history": spans.first, "visible": spans.begin, "none": end}[self.exclude], end

    def _pad(self, values: np.ndarray) -> Any:
        """int32, with zeros up to the number of queries that all batches have room for."""
        missing = self._max_queries - len(values)
        return np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1)).astype(np.int32)

    def _seen_items(self, spans: Spans) -> Int[np.ndarray, "B S"]:
        """Item ids before each target, 0-padded to a power of two so that few shapes are compiled."""
        start, end = self.seen(spans)
        length = end - start
        width = 1 << int(max(length.max(), 1) - 1).bit_length()
        seen = np.zeros((len(spans), width), np.int32)
        user = np.repeat(np.arange(len(spans)), length)
        seen[user, packing.token_index(np.zeros_like(length), length)] = self.dataset.events.item[
            packing.token_index(start, length)
        ]
        return seen


def evaluation_rows(
    dataset: Dataset,
    config: DataConfig,
    split: sequences.Split,
    scheme: tokenizer.TokenScheme = tokenizer.ITEMS,
    *,
    batch_users: int,
    exclude: str,
    sample: int = 0,
    device_multiple: int = 1,
) -> EvaluationBatches:
    """Plans the evaluation of `split`, on a fixed random sample of `sample` users, or on all of them with 0.

    Users whose held-out event is no label (its action is not positive) are left out.

    Raises:
      ConfigError: no user is left.
    """
    spans = sequences.spans(dataset.events.offsets, split, max_length=config.max_length)
    if scheme.positive_bit >= 0:
        assert dataset.events.action is not None
        spans = spans.take(
            np.flatnonzero(dataset.events.action[spans.last_event + 1] >> scheme.positive_bit & 1)
        )
        if len(spans) == 0:
            name = dataset.catalogue.actions[scheme.positive_bit]
            raise ConfigError(
                f"config.loss.positive={name!r}: the {split} event of no user has this action, so there is nothing to"
                " evaluate; choose an action that happens, or '' to predict every event"
            )
    if 0 < sample < len(spans):
        spans = spans.take(
            np.sort(np.random.default_rng(0).choice(len(spans), sample, replace=False))
        )
    lengths = tokenizer.token_counts(dataset, spans, scheme=scheme)
    rows = packing.RowIndex(packing.pack(lengths, config.row_length))
    batch_rows = packing.rows_per_batch(rows.packing, len(spans), batch_users, device_multiple)
    make = tokenizer.filler(dataset, row_length=config.row_length, scheme=scheme)
    return EvaluationBatches(
        dataset, spans, make, lengths, rows, config.row_length, batch_rows, exclude
    )
