"""Histories as rows of a `Batch` on the host: made by the tokenizer of training, cut, compared.

A history is a `Batch` of one row without padding. It is what a cache compares, what programs are
fed with piece by piece, and what candidates are made from; tokens have no other form in serving.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from gr_jax.data.batches import packing, tokenizer
from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.tokenizer import TokenScheme
from gr_jax.data.dataset import Dataset
from gr_jax.serving.history import History, sequences

# fields that a model reads of histories and candidates
INPUTS = (
    "item",
    "time",
    "query_time",
    "position",
    "segment",
    "action",
    "item_features",
    "user_feature",
)
# those that say whether two histories are the same: the others follow from them
CONTENT = ("item", "time", "action", "item_features", "user_feature")

Items = Int32[np.ndarray, " _"]


@dataclass(frozen=True)
class RowMaker:
    """Makes the rows that the model of a run reads."""

    dataset: Dataset
    scheme: TokenScheme
    max_events: int  # of a history that the model sees

    def max_tokens(self, history: History) -> int:
        """Tokens of a history that the model sees, at most."""
        return self.scheme.max_tokens(min(len(history), self.max_events))

    def padded(
        self,
        histories: Sequence[History],
        *,
        with_asked: bool,
        num_rows: int = 0,
        room: Callable[[int], int] = int,
    ) -> tuple[Batch, Int[np.ndarray, " B"]]:
        """Padded rows with one history each, and the number of tokens of each history.

        Args:
          histories: histories; without `with_asked` none is empty.
          with_asked: True if the event asked about is part of the rows, as item 1.
          num_rows: rows, at least as many as histories; 0 = just as many.
          room: tokens of the longest history -> length of a row.
        """
        events, spans = sequences(
            histories, self.dataset, max_length=self.max_events, with_asked=with_asked
        )
        count, row = tokenizer.token_counts(events, spans, self.scheme), np.arange(len(histories))
        slots = packing.Slots(row, 0 * row, num_rows or len(row), room(int(count.max())))
        batch = tokenizer.fill_rows(events, self.dataset.catalogue, spans, self.scheme, slots)
        return batch, count

    def histories(self, histories: Sequence[History]) -> list[Batch]:
        """The row of each history (retrieval); none may be empty.

        The last token asks about `History.at_time`.
        """
        batch, count = self.padded(histories, with_asked=False)
        return [cut(batch, row, 0, n) for row, n in enumerate(count.tolist())]

    def with_candidates(
        self, histories: Sequence[History], candidates: Sequence[Items]
    ) -> tuple[list[Batch], list[Batch]]:
        """The row of each history, and the row of its candidates (ranking).

        A candidate is the token that its item would be at the time asked about.
        """
        batch, count = self.padded(histories, with_asked=True)
        # The event asked about is its item alone: the token of its action does not exist yet.
        before = count - self.scheme.tokens_per_event
        rows = [cut(batch, row, 0, n) for row, n in enumerate(before.tolist())]
        features = self.dataset.catalogue.item_features
        asked = []
        for row, (n, items) in enumerate(zip(before.tolist(), candidates, strict=True)):
            token = cut(batch, row, n, n + 1)
            tokens = _map(functools.partial(np.repeat, repeats=len(items), axis=1), token)
            chosen = None if features is None else features[items][None]
            asked.append(dataclasses.replace(tokens, item=items[None], item_features=chosen))
        return rows, asked


def length(row: Batch) -> int:
    """Tokens of a row."""
    return row.item.shape[1]


def cut(batch: Batch, row: int, begin: int, end: int) -> Batch:
    """Some tokens of a row in memory of their own, without labels."""
    return _map(lambda x: np.array(x[row : row + 1, begin:end]), batch)


def piece(row: Batch, begin: int, end: int) -> Batch:
    """Tokens of a row, in the memory of the row."""
    return _map(lambda x: x[:, begin:end], row)


def join(row: Batch, other: Batch) -> Batch:
    """The tokens of a row, then those of another."""
    return _map(lambda a, b: np.concatenate([a, b], axis=1), row, other)


def repeat(row: Batch, tokens: int) -> Batch:
    """A row of this many tokens, which repeats those of `row`."""
    times = -(-tokens // length(row))
    repeated = _map(lambda x: np.concatenate([x] * times, axis=1)[:, :tokens], row)
    return dataclasses.replace(repeated, position=np.arange(tokens, dtype=np.int32)[None])


def starts_with(row: Batch, other: Batch) -> bool:
    """True if the first tokens of a row are those of another."""
    for name in CONTENT:
        a, b = getattr(row, name), getattr(other, name)
        if (a is None) != (b is None):
            return False
        if a is not None and not np.array_equal(a[:, : b.shape[1]], b):
            return False
    return True


def stack(rows: Sequence[Batch], *, num_rows: int, row_length: int) -> Batch:
    """Padded rows [num_rows, row_length] of at most as many rows of at most this length."""

    def padded(*values: np.ndarray) -> np.ndarray:
        filled = np.zeros((num_rows, row_length, *values[0].shape[2:]), np.int32)
        for row, x in enumerate(values):
            filled[row, : x.shape[1]] = x[0]
        return filled

    return _map(padded, *rows)


def nbytes(row: Batch) -> int:
    """Bytes of a row in memory."""
    return sum(getattr(row, name).nbytes for name in INPUTS if getattr(row, name) is not None)


def _map(function: Callable[..., np.ndarray], *rows: Batch) -> Batch:
    """The inputs of rows as `function` of each field."""
    fields: dict[str, Any] = {}
    for name in INPUTS:
        values = [getattr(row, name) for row in rows]
        if values[0] is not None:
            fields[name] = function(*values)
    return Batch(**fields)
