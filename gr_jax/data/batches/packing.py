"""Sequences -> rows: whole sequences of several users back to back in rows of a fixed length."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Num


@dataclass(frozen=True)
class Packing:
    """Row and first column of each sequence, in the order of the lengths given."""

    row: Int[np.ndarray, " B"]  # row of the sequence
    column: Int[np.ndarray, " B"]  # column of its first token
    num_rows: int  # rows used; of balanced batches all, with the empty ones among them


@dataclass(frozen=True)
class Slots:
    """Places of sequences in the rows of one batch, [num_rows, row_length]."""

    row: Int[np.ndarray, " B"]  # row of the sequence
    column: Int[np.ndarray, " B"]  # column of its first token
    num_rows: int
    row_length: int

    @property
    def start(self) -> Int[np.ndarray, " B"]:
        """Flat index, row * L + column, of the first token of each sequence."""
        return self.row * self.row_length + self.column


def pack(lengths: Int[np.ndarray, " B"], row_length: int) -> Packing:
    """Best-fit-decreasing packing of sequences into rows.

    The longest sequence goes first, each into the fullest row that still has room. The number of
    rows depends on the multiset of lengths alone, so it is the same in every shuffled epoch.

    Args:
      lengths: tokens of each sequence, 1 to row_length.
      row_length: L.

    Raises:
      ValueError: a sequence is longer than a row.
    """
    if len(lengths) and lengths.max() > row_length:
        raise ValueError(
            f"a sequence of {lengths.max()} tokens does not fit in a row of {row_length}"
        )
    order = np.argsort(-lengths, kind="stable")
    rows_with_room: list[list[int]] = [[] for _ in range(row_length + 1)]  # by free tokens
    # Bit f: a row with f free tokens is open; the best fit is the lowest bit set from `length` on.
    free_sizes = 0
    row, column, num_rows = [0] * len(order), [0] * len(order), 0
    for i, length in enumerate(lengths[order].tolist()):
        fitting = free_sizes >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            target = rows_with_room[free].pop()
            if not rows_with_room[free]:
                free_sizes &= ~(1 << free)
        else:
            target, free = num_rows, row_length
            num_rows += 1
        row[i], column[i] = target, row_length - free
        if free > length:
            rows_with_room[free - length].append(target)
            free_sizes |= 1 << (free - length)
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    return Packing(
        np.array(row, np.int64)[position], np.array(column, np.int64)[position], num_rows
    )


def shuffle(packing: Packing, lengths: Int[np.ndarray, " B"], rng: np.random.Generator) -> Packing:
    """A random permutation: sequences of equal length change places, rows change their order."""
    permutation = rng.permutation(len(lengths))
    place = np.argsort(lengths, kind="stable")
    taken_by = permutation[np.argsort(lengths[permutation], kind="stable")]
    row, column = np.empty_like(packing.row), np.empty_like(packing.column)
    row[taken_by], column[taken_by] = packing.row[place], packing.column[place]
    return Packing(rng.permutation(packing.num_rows)[row], column, packing.num_rows)


def padded(rows: int, multiple: int) -> int:
    """`rows`, and as many empty ones as make a multiple.

    >>> padded(20, 8)
    24
    """
    return -(-rows // multiple) * multiple


def balance(
    packing: Packing, cost: Num[np.ndarray, " B"], batch_rows: int, shards: int
) -> tuple[Packing, Int[np.ndarray, "batches R"]]:
    """The rows of each batch in an order in which equal parts of the batch cost about the same.

    A device that has less to do than the others waits for them. Of the rows of a batch the
    costliest goes first, each to the part with the least so far that still has room.

    Args:
      packing: rows 0 to num_rows - 1; batch b is rows b * batch_rows to (b + 1) * batch_rows - 1.
      cost: of each sequence; that of a row is the sum. A cost common to all rows can be left out.
      batch_rows: rows of a batch in `packing`.
      shards: S, equal parts of a batch.

    Returns:
      The packing with R = `padded(batch_rows, S)` rows a batch, the empty ones among the others.
      The number that each row of a batch had in `packing`; those of empty rows are the last.
    """
    costs = _row_costs(packing, cost, batch_rows)
    rows = padded(batch_rows, shards)
    costs = np.pad(costs, [(0, 0), (0, rows - batch_rows)])
    batches, room = np.arange(len(costs)), rows // shards
    load, count = np.zeros((len(costs), shards)), np.zeros((len(costs), shards), np.int64)
    place = np.empty(costs.shape, np.int64)
    costliest_first = np.argsort(-costs, axis=1, kind="stable")
    for row in costliest_first.T:  # one row of each batch at a time
        shard = np.where(count < room, load, np.inf).argmin(axis=1)
        place[batches, row] = shard * room + count[batches, shard]
        load[batches, shard] += costs[batches, row]
        count[batches, shard] += 1
    batch, row = np.divmod(packing.row, batch_rows)
    balanced = Packing(batch * rows + place[batch, row], packing.column, len(costs) * rows)
    return balanced, np.argsort(place, axis=1).astype(np.int32)


def imbalance(
    packing: Packing, cost: Num[np.ndarray, " B"], batch_rows: int, shards: int, *, row_cost: float
) -> float:
    """Cost of the costliest shard over that of the mean shard, over all batches; 1 = none waits.

    Arguments as of `balance`; row_cost: of any row, empty ones too, besides that of its sequences.
    """
    costs, rows = _row_costs(packing, cost, batch_rows), padded(batch_rows, shards)
    costs = np.pad(costs, [(0, 0), (0, rows - batch_rows)])
    parts = row_cost * (rows // shards) + costs.reshape(-1, shards, rows // shards).sum(axis=2)
    return float(parts.max(axis=1).sum() / parts.mean(axis=1).sum())


def _row_costs(
    packing: Packing, cost: Num[np.ndarray, " B"], batch_rows: int
) -> Float[np.ndarray, "batches R"]:
    """Cost of each row of each batch, 0 for the empty ones of the last."""
    rows = -(-packing.num_rows // batch_rows) * batch_rows
    return np.bincount(packing.row, weights=cost, minlength=rows).reshape(-1, batch_rows)


@dataclass(frozen=True, eq=False)
class RowIndex:
    """A packing that can be read row by row."""

    packing: Packing

    @functools.cached_property
    def _by_row(self) -> tuple[Int[np.ndarray, " B"], Int[np.ndarray, " B"]]:
        order = np.argsort(self.packing.row, kind="stable")
        return order, self.packing.row[order]

    def between(
        self, first_row: int, last_row: int
    ) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
        """Sequences of rows first_row to last_row - 1; their rows, from first_row, and columns."""
        order, sorted_rows = self._by_row
        low, high = np.searchsorted(sorted_rows, (first_row, last_row))
        chosen = order[low:high]
        return chosen, self.packing.row[chosen] - first_row, self.packing.column[chosen]

    def max_sequences(self, batch_rows: int) -> int:
        """Maximum number of sequences in a batch of `batch_rows` rows."""
        edges = np.arange(-(-self.packing.num_rows // batch_rows) + 1) * batch_rows
        return int(np.diff(np.searchsorted(self._by_row[1], edges)).max())


def rows_per_batch(
    packing: Packing, sequences: int, batch_sequences: int, device_multiple: int = 1
) -> int:
    """R, a multiple of `device_multiple`: R rows hold `batch_sequences` sequences on average."""
    batches = max(1, round(sequences / batch_sequences))
    return padded(-(-packing.num_rows // batches), device_multiple)


def token_index(
    start: Int[np.ndarray, " B"], length: Int[np.ndarray, " B"]
) -> Int[np.ndarray, " T"]:
    """The elements of ranges: start[0], start[0] + 1, .. start[0] + length[0] - 1, start[1], ..

    >>> token_index(np.array([10, 3]), np.array([3, 2])).tolist()
    [10, 11, 12, 3, 4]
    """
    before = np.cumsum(length) - length
    return np.repeat(start - before, length) + np.arange(length.sum())
