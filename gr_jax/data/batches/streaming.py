"""One pass in the order of time: an example when a session ends, window after window.

Zhai et al. 2024, section 2.3. An example is a user's most recent events up to the end of a
session; its labels are the events since the user's previous example, so each event is a label at
most once. Keeping an example of n events with probability rate / n makes the cost of a user's
examples grow with n instead of n^2: the paper's sampling rate proportional to 1 / n.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from gr_jax.config import Config, ConfigError
from gr_jax.data.batches import packing, tokenizer
from gr_jax.data.batches.batch import WHOLE, Batch, Share
from gr_jax.data.batches.epochs import causal_pairs, numbered
from gr_jax.data.batches.packing import Slots
from gr_jax.data.batches.sequences import Spans, labels_between, windows
from gr_jax.data.dataset import Dataset, Events


def session_spans(
    events: Events, low: int, high: int, *, gap: int, max_length: int, rate: float, seed: int
) -> tuple[Spans, Int[np.ndarray, " B"]]:
    """Examples of the sessions with low <= time < high by the time they end, and those times.

    Args:
      events: of the prepared log.
      low, high: unix seconds.
      gap: seconds without an event that end a session; it also ends at `high`.
      max_length: N, events of an example.
      rate: an example of n events is kept with probability min(1, rate / n); 0 keeps all. Events
        of dropped examples are labels of the user's next one, as far as it reaches back.
      seed: of that draw.
    """
    time = events.timestamp
    from_event, to_event = labels_between(events.offsets, time, low, high)
    event = packing.token_index(from_event, to_event - from_event)
    user = np.repeat(np.arange(events.num_users), to_event - from_event)
    is_last = np.append(user[1:] != user[:-1], True)
    is_last |= np.append(time[event[1:]] - time[event[:-1]], 0) > gap
    end, user = event[is_last] + 1, user[is_last]
    first = events.offsets[user]

    if rate:
        visible = np.minimum(end - first, max_length)
        kept = np.random.default_rng((seed, 2)).random(len(end)) < rate / visible
        end, user, first = end[kept], user[kept], first[kept]

    label_from = np.where(np.append(True, user[1:] != user[:-1]), from_event[user], np.roll(end, 1))
    if rate:
        label_from = np.maximum(label_from, end - max_length)
    spans, session = windows(user, first, label_from, end, max_length=max_length)
    emitted = time[end - 1][session]
    order = np.argsort(emitted, kind="stable")
    return spans.take(order), emitted[order]


def window_edges(
    time: Int[np.ndarray, " E"], low: int, high: int, count: int
) -> Int[np.ndarray, " W1"]:
    """Edges of `count` windows of equally many of the events with low <= time < high.

    Raises:
      ConfigError: a window would be empty.
    """
    inside = np.sort(time[(time >= low) & (time < high)])
    edges = np.append(inside[np.arange(count) * len(inside) // count], high)
    if (np.diff(edges) <= 0).any():
        raise ConfigError(
            f"config.train.windows={count}: a window has no event of its own; choose fewer"
        )
    return edges


@dataclass(frozen=True, eq=False)
class StreamBatches:
    """Packed batches in the order of time; epoch w is window w."""

    dataset: Dataset
    spans: Spans  # in the order in which they are emitted
    scheme: tokenizer.TokenScheme
    groups: tuple[tuple[int, int], ...]  # examples of each batch: first, and after the last
    first_batch: tuple[int, ...]  # number of the first batch of each window, and after the last
    lengths: Int[np.ndarray, " B"]  # tokens of each example
    row_length: int  # L
    batch_rows: int  # rows of a global batch, without the empty ones that several shards add
    shards: int = 1  # equal parts of a batch, on different devices, whose costs are evened out

    @property
    def fill(self) -> float:
        """Real tokens per token computed."""
        computed = len(self.groups) * self.rows_computed * self.row_length
        return float(self.lengths.sum()) / computed

    @property
    def rows_computed(self) -> int:
        """R, rows of a global batch with the empty ones that make the shards equal."""
        return packing.padded(self.batch_rows, self.shards)

    def first_step(self, epoch: int) -> int:
        """Number of the first batch of a window."""
        return self.first_batch[epoch]

    def locate(self, step: int) -> tuple[int, int]:
        """Window of batch `step`, and its number in the window."""
        window = bisect.bisect_right(self.first_batch, step) - 1
        return window, step - self.first_batch[window]

    def batch(self, index: int, share: Share = WHOLE) -> Batch:
        """A share of batch `index` of the run, [R / count, L]."""
        first, last = self.groups[index]
        lengths = self.lengths[first:last]
        packed, number = packing.pack(lengths, self.row_length), None
        if self.shards > 1:
            cost = causal_pairs(lengths)
            packed, number = packing.balance(packed, cost, self.batch_rows, self.shards)
        first_row, last_row, size = share.of(self.rows_computed)
        chosen, row, column = packing.RowIndex(packed).between(first_row, last_row)
        spans, slots = self.spans.take(first + chosen), Slots(row, column, size, self.row_length)
        events, catalogue = self.dataset.events, self.dataset.catalogue
        batch = tokenizer.fill_rows(events, catalogue, spans, self.scheme, slots)
        if number is None:
            return batch
        return numbered(batch, number[0, first_row:last_row], self.batch_rows)


def stream_batches(
    dataset: Dataset,
    config: Config,
    scheme: tokenizer.TokenScheme,
    edges: Int[np.ndarray, " W1"],
    *,
    shards: int,
) -> StreamBatches:
    """One pass over the windows between `edges`.

    Raises:
      ConfigError: the sampling rate keeps no example.
    """
    train, max_length = config.train, config.data.max_length
    spans, emitted = session_spans(
        dataset.events,
        int(edges[0]),
        int(edges[-1]),
        gap=train.session_gap,
        max_length=max_length,
        rate=train.sampling_rate,
        seed=config.seed,
    )
    if not len(spans):
        raise ConfigError(
            f"config.train.sampling_rate={train.sampling_rate} keeps no example: choose a greater"
            " one, or 0 to keep all"
        )

    lengths = tokenizer.token_counts(dataset.events, spans, scheme)
    length = config.data.row_length
    batch_rows = max(1, round(train.batch_users * float(lengths.mean()) / length))
    groups, first_batch = [], [0]
    for window in np.split(np.arange(len(spans)), np.searchsorted(emitted, edges[1:-1])):
        if len(window):
            first, last = int(window[0]), int(window[-1]) + 1
            groups += consecutive_groups(lengths, first, last, batch_rows, length)
        first_batch.append(len(groups))
    return StreamBatches(
        dataset,
        spans,
        scheme,
        tuple(groups),
        tuple(first_batch),
        lengths,
        length,
        batch_rows,
        shards,
    )


def consecutive_groups(
    lengths: Int[np.ndarray, " B"], first: int, last: int, batch_rows: int, row_length: int
) -> list[tuple[int, int]]:
    """Runs of the sequences first .. last - 1, each as long as fits into `batch_rows` rows."""
    before = np.concatenate([[0], np.cumsum(lengths)])
    groups = []
    while first < last:
        room = before[first] + batch_rows * row_length
        end = min(last, int(np.searchsorted(before, room, "right")) - 1)
        while packing.pack(lengths[first:end], row_length).num_rows > batch_rows:
            end -= max(1, (end - first) // 50)
        groups.append((first, end))
        first = end
    return groups
