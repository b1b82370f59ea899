"""One pass in the order of time: an example when a session ends, window after window (Zhai et al. 2024, section 2.3).

An example is a user's most recent events up to the end of a session; its labels are the events since the user's example
before it, so each event is a label at most once. Keeping an example of n events with probability rate / n makes the
cost of a user's examples grow with n instead of n^2: the sampling rate proportional to 1 / n of the paper.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from gr_jax.config import Config, ConfigError
from gr_jax.data.batches import packing, tokenizer
from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.epochs import causal_pairs
from gr_jax.data.batches.sequences import Spans, labels_between, windows
from gr_jax.data.batches.share import WHOLE, Share
from gr_jax.data.dataset import Dataset


def session_spans(
    dataset: Dataset, low: int, high: int, *, gap: int, max_length: int, rate: float, seed: int
) -> tuple[Spans, Int[np.ndarray, " B"]]:
    """Examples of the sessions with low <= time < high in the order in which they end, and when each is emitted.

    Args:
      dataset: the prepared log.
      low, high: unix seconds.
      gap: seconds without an event that end a session; it also ends at `high`.
      max_length: N, events of an example.
      rate: an example of n events is kept with probability min(1, rate / n); 0 keeps all. Events of dropped examples
        are labels of the user's next one, as far as it reaches back.
      seed: of that draw.
    """
    time = dataset.events.timestamp
    from_event, to_event = labels_between(dataset.events.offsets, time, low, high)
    event = packing.token_index(from_event, to_event - from_event)
    user = np.repeat(np.arange(dataset.num_users), to_event - from_event)
    last = np.append(user[1:] != user[:-1], True) | (
        np.append(time[event[1:]] - time[event[:-1]], 0) > gap
    )
    end, user = event[last] + 1, user[last]
    first = dataset.events.offsets[user]
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
    """Times that cut the events with low <= time < high into `count` windows of equally many events, first to last.

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

    spans: Spans  # in the order in which they are emitted
    make: tokenizer.Fill
    groups: tuple[tuple[int, int], ...]  # examples of each batch: first, and after the last
    first_batch: tuple[int, ...]  # number of the first batch of each window, and after the last
    lengths: Int[np.ndarray, " B"]  # tokens of each example
    row_length: int  # L
    batch_rows: int  # R
    shards: int = 1  # equal parts of a batch, on different devices, whose costs are evened out

    @property
    def fill(self) -> float:
        """Real tokens per token computed."""
        return float(self.lengths.sum()) / (len(self.groups) * self.batch_rows * self.row_length)

    def first_step(self, epoch: int) -> int:
        """Number of the first batch of a window."""
        return self.first_batch[epoch]

    def locate(self, step: int) -> tuple[int, int]:
        """Window of batch `step`, and its number in the window."""
        window = bisect.bisect_right(self.first_batch, step) - 1
        return window, step - self.first_batch[window]

    def batch(self, index: int, share: Share = WHOLE) -> Batch:
        """Batch `index` of the run: a share of its rows, [R / count, L]."""
        first, last = self.groups[index]
        lengths = self.lengths[first:last]
        packed = packing.pack(lengths, self.row_length)
        rows = packing.RowIndex(
            packing.balance(packed, causal_pairs(lengths), self.batch_rows, self.shards)
        )
        first_row, last_row, size = share.of(self.batch_rows)
        chosen, row, column = rows.between(first_row, last_row)
        return self.make(self.spans.take(first + chosen), row=row, column=column, num_rows=size)


def stream_rows(
    dataset: Dataset,
    config: Config,
    scheme: tokenizer.TokenScheme,
    edges: Int[np.ndarray, " W1"],
    *,
    device_multiple: int,
) -> StreamBatches:
    """Plans one pass over the windows between `edges`.

    Raises:
      ConfigError: the sampling rate keeps no example.
    """
    train, max_length = config.train, config.data.max_length
    spans, emitted = session_spans(
        dataset,
        int(edges[0]),
        int(edges[-1]),
        gap=train.session_gap,
        max_length=max_length,
        rate=train.sampling_rate,
        seed=config.seed,
    )
    if not len(spans):
        raise ConfigError(
            f"config.train.sampling_rate={train.sampling_rate} keeps no example: choose a greater one, or 0 to keep all"
        )
    lengths = tokenizer.token_counts(dataset, spans, scheme=scheme)
    length = config.data.row_length
    batch_rows = max(1, round(train.batch_users * float(lengths.mean()) / length))
    batch_rows = -(-batch_rows // device_multiple) * device_multiple
    groups, first_batch = [], [0]
    for window in np.split(np.arange(len(spans)), np.searchsorted(emitted, edges[1:-1])):
        if len(window):
            groups += consecutive_groups(
                lengths, int(window[0]), int(window[-1]) + 1, batch_rows, length
            )
        first_batch.append(len(groups))
    make = tokenizer.filler(dataset, row_length=length, scheme=scheme)
    return StreamBatches(
        spans, make, tuple(groups), tuple(first_batch), lengths, length, batch_rows, device_multiple
    )


def consecutive_groups(
    lengths: Int[np.ndarray, " B"], first: int, last: int, batch_rows: int, row_length: int
) -> list[tuple[int, int]]:
    """Cuts sequences first .. last - 1 into runs that each fit into `batch_rows` rows, as long as packing allows."""
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
