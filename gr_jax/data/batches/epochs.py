"""Training batches of packed rows, shuffled epoch after epoch.

Batch i is a pure function of (seed, i). On any number of processes and devices it has the same
rows; for several devices in another order and with empty ones between them.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import threading
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from gr_jax.config import DataConfig, EvaluateConfig
from gr_jax.data.batches import packing, sequences, stochastic_length, tokenizer
from gr_jax.data.batches.batch import ADDED_ROW, WHOLE, Batch, Impressions, Share
from gr_jax.data.batches.packing import Slots
from gr_jax.data.batches.sequences import Spans
from gr_jax.data.dataset import Dataset

LEAVE_ONE_OUT = EvaluateConfig()


@runtime_checkable
class TrainPlan(Protocol):
    """The batches of a training run, as the training loop sees them."""

    def first_step(self, epoch: int) -> int:
        """Number of the first batch of an epoch."""
        ...

    def locate(self, step: int) -> tuple[int, int]:
        """Epoch of batch `step`, and its number in the epoch."""
        ...

    def batch(self, index: int, share: Share) -> Batch | Impressions:
        """A share of batch `index` of the run."""
        ...


@dataclass(frozen=True)
class Epoch:
    """One pass: its sequences, perhaps cut, and where each lies."""

    spans: Spans
    rows: packing.RowIndex
    num_rows: int  # that the pass fills
    number: Int[np.ndarray, "batches R"] | None = None  # of rows, as of `packing.balance`


@dataclass(frozen=True, eq=False)
class TrainBatches:
    """Packed batches `batch(i)` for i from 0, shuffled epoch after epoch."""

    dataset: Dataset
    spans: Spans  # before Stochastic Length cuts them
    scheme: tokenizer.TokenScheme
    config: DataConfig
    packing: packing.Packing  # of the uncut sequences
    batch_rows: int  # rows of a global batch, without the empty ones that several shards add
    seed: int
    shards: int = 1  # equal parts of a batch, on different devices, whose costs are evened out
    _first_steps: list[int] = field(default_factory=lambda: [0])
    # the reading thread plans ahead too
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def row_length(self) -> int:
        """L."""
        return self.config.row_length

    @property
    def rows_computed(self) -> int:
        """R, rows of a global batch with the empty ones that make the shards equal."""
        return packing.padded(self.batch_rows, self.shards)

    @property
    def is_cut(self) -> bool:
        """True if Stochastic Length cuts histories, by epoch."""
        return self.config.stochastic_length_alpha < 2

    def count(self, spans: Spans) -> Int[np.ndarray, " B"]:
        """Tokens of each sequence."""
        return tokenizer.token_counts(self.dataset.events, spans, self.scheme)

    @property
    def fill(self) -> float:
        """Real tokens per token computed, in the first epoch."""
        real = float(self.count(self.epoch(0).spans).sum())
        return real / (self.steps(0) * self.rows_computed * self.row_length)

    @functools.lru_cache(maxsize=2)  # noqa: B019  two epochs: prefetch reaches into the next one
    def epoch(self, epoch: int) -> Epoch:
        """The sequences of an epoch and their places."""
        spans, lengths, shuffled = self._shuffled(epoch)
        if self.shards == 1:
            return Epoch(spans, packing.RowIndex(shuffled), shuffled.num_rows)
        cost = causal_pairs(lengths)
        balanced, number = packing.balance(shuffled, cost, self.batch_rows, self.shards)
        return Epoch(spans, packing.RowIndex(balanced), shuffled.num_rows, number)

    def _shuffled(self, epoch: int) -> tuple[Spans, Int[np.ndarray, " B"], packing.Packing]:
        spans = self._cut(epoch) if self.is_cut else self.spans
        lengths = self.count(spans)
        packed = packing.pack(lengths, self.row_length) if self.is_cut else self.packing
        rng = np.random.default_rng((self.seed, epoch))
        return spans, lengths, packing.shuffle(packed, lengths, rng)

    def _cut(self, epoch: int) -> Spans:
        """The sequences of an epoch under Stochastic Length."""
        spans = self.spans
        kept, length = stochastic_length.choose(
            spans.begin,
            spans.length,
            self.dataset.events.timestamp,
            spans.user,
            rule=stochastic_length.Rule.of(self.config),
            seed=self.seed,
            epoch=epoch,
        )
        begin, end = np.cumsum(length) - length, spans.begin + spans.length
        length = length.astype(np.int32)
        return dataclasses.replace(spans, begin=begin, length=length, kept=kept, end=end)

    def imbalance(self, *, token_cost: float, pair_cost: float) -> tuple[float, float]:
        """`packing.imbalance` of the first epoch, before and after its rows were balanced.

        token_cost: of a token, padding or not; pair_cost: of a query and a key that it sees.
        """
        _, lengths, shuffled = self._shuffled(0)
        cost, row_cost = pair_cost * causal_pairs(lengths), token_cost * self.row_length
        laid_out = (
            (shuffled, self.batch_rows),
            (self.epoch(0).rows.packing, self.rows_computed),
        )
        before, after = (
            packing.imbalance(order, cost, rows, self.shards, row_cost=row_cost)
            for order, rows in laid_out
        )
        return before, after

    def steps(self, epoch: int) -> int:
        """Batches of an epoch; all have equally many unless histories are cut."""
        num_rows = self.epoch(epoch).num_rows if self.is_cut else self.packing.num_rows
        return -(-num_rows // self.batch_rows)

    def first_step(self, epoch: int) -> int:
        """Number of the first batch of an epoch."""
        if not self.is_cut:
            return epoch * self.steps(0)
        with self._lock:
            while len(self._first_steps) <= epoch:
                steps = self.steps(len(self._first_steps) - 1)
                self._first_steps.append(self._first_steps[-1] + steps)
        return self._first_steps[epoch]

    def locate(self, step: int) -> tuple[int, int]:
        """Epoch of batch `step`, and its number in the epoch."""
        if not self.is_cut:
            return divmod(step, self.steps(0))
        while self._first_steps[-1] <= step:
            self.first_step(len(self._first_steps))
        epoch = bisect.bisect_right(self._first_steps, step) - 1
        return epoch, step - self.first_step(epoch)

    def batch(self, index: int, share: Share = WHOLE) -> Batch:
        """A share of batch `index` of the run, [R / count, L]."""
        number, k = self.locate(index)
        epoch, (first, last, size) = self.epoch(number), share.of(self.rows_computed)
        before = k * self.rows_computed
        chosen, row, column = epoch.rows.between(before + first, before + last)
        slots = Slots(row, column, size, self.row_length)
        events, catalogue = self.dataset.events, self.dataset.catalogue
        spans = epoch.spans.take(chosen)
        batch = tokenizer.fill_rows(events, catalogue, spans, self.scheme, slots)
        if epoch.number is None:
            return batch
        return numbered(batch, epoch.number[k, first:last], self.batch_rows)


def numbered(batch: Batch, number: Int[np.ndarray, " r"], batch_rows: int) -> Batch:
    """The batch with these numbers of its first rows; from `batch_rows` on they are added rows."""
    row = np.full(len(batch.item), ADDED_ROW, np.int32)
    row[: len(number)] = np.where(number < batch_rows, number, ADDED_ROW)
    return dataclasses.replace(batch, row=row)


def causal_pairs(lengths: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
    """Pairs of a query and a key that it sees, in sequences of these lengths: attention's cost."""
    return lengths.astype(np.int64) * (lengths.astype(np.int64) + 1) // 2


def plan_batches(
    dataset: Dataset,
    spans: Spans,
    config: DataConfig,
    scheme: tokenizer.TokenScheme,
    *,
    batch_users: int,
    shards: int,
    seed: int,
) -> TrainBatches:
    """Training batches of `spans` with `batch_users` sequences on average.

    Args:
      dataset: the prepared log.
      spans: the sequences that train.
      config: max_length N, row_length L and Stochastic Length.
      scheme: how events become tokens.
      batch_users: mean sequences in a global batch.
      shards: equal parts of a batch, each with about equal work; the sequences of batch i are the
        same for any number of them.
      seed: of the shuffles and cuts.
    """
    counts = tokenizer.token_counts(dataset.events, spans, scheme)
    whole = packing.pack(counts, config.row_length)
    plan = TrainBatches(dataset, spans, scheme, config, whole, batch_rows=1, seed=seed)
    first = plan.epoch(0).rows.packing
    batch_rows = packing.rows_per_batch(first, len(spans), batch_users)
    return dataclasses.replace(plan, batch_rows=batch_rows, shards=shards)


def retrieval_batches(
    dataset: Dataset,
    config: DataConfig,
    scheme: tokenizer.TokenScheme = tokenizer.ITEMS,
    *,
    batch_users: int,
    shards: int = 1,
    seed: int = 0,
    evaluate: EvaluateConfig = LEAVE_ONE_OUT,
) -> TrainBatches:
    """Training batches of retrieval: what `evaluate.split` leaves of every user.

    Other arguments: `plan_batches`.
    """
    spans = sequences.spans(dataset.events, evaluate, "train", max_length=config.max_length)
    return plan_batches(
        dataset,
        spans,
        config,
        scheme,
        batch_users=batch_users,
        shards=shards,
        seed=seed,
    )
