"""The tokens of one history on the host: what a cache is made of, compared with, and extended by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from gr_jax.data.batches.batch import Batch

FIELDS = ("item", "time", "action", "user_feature", "item_features")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens of a history, oldest first, with the ids of `Batch`; what a model does not use is None.

    Positions and the times asked about are not told: the first are counted, the others follow from the events.
    """

    item: Int[np.ndarray, " T"]  # item id; 0 where the token is no item
    time: Int[np.ndarray, " T"]  # seconds since the first event of the history
    action: Int[np.ndarray, " T"] | None = None  # 0 = tells no action; else 1 + 2 * bits
    user_feature: Int[np.ndarray, " T"] | None = None  # value of a user attribute or slow series
    item_features: Int[np.ndarray, "T F"] | None = None  # feature values of the item

    def __len__(self) -> int:
        return len(self.item)

    def __getitem__(self, part: slice) -> Tokens:
        """Some tokens in a row."""
        return _tokens(None if x is None else x[part] for x in self._arrays())

    def __add__(self, other: Tokens) -> Tokens:
        """These tokens, then the others."""
        return _tokens(None if a is None else np.concatenate([a, b]) for a, b in self._pairs(other))

    def starts_with(self, other: Tokens) -> bool:
        """Whether the first of these tokens are the others."""
        pairs = self[: len(other)]._pairs(other)
        return all(
            (a is None) == (b is None) and (a is None or np.array_equal(a, b)) for a, b in pairs
        )

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(x.nbytes for x in self._arrays() if x is not None)

    def _arrays(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in FIELDS)

    def _pairs(self, other: Tokens) -> Iterator[tuple[Any, Any]]:
        return zip(self._arrays(), other._arrays(), strict=True)

    def asked_times(self, at_time: int = 0) -> Int[np.ndarray, " T"]:
        """Retrieval: the time that each token asks about.

        Of an item that of the next item, or `at_time`; of any other token its own.
        """
        items = np.flatnonzero(self.item)
        asked = self.time.copy()
        asked[items] = np.append(self.time[items[1:]], at_time)[: len(items)]
        return asked


def _tokens(arrays: Iterable[Any]) -> Tokens:
    return Tokens(**dict(zip(FIELDS, arrays, strict=True)))


def of_rows(batch: Batch, counts: Sequence[int] | Int[np.ndarray, " R"]) -> list[Tokens]:
    """The first tokens of each row, as many as `counts` tells, of rows with one sequence each from column 0 on."""
    arrays = [getattr(batch, name) for name in FIELDS]
    return [
        _tokens(None if x is None else np.array(x[row, :n]) for x in arrays)
        for row, n in enumerate(counts)
    ]


def to_rows(
    tokens: Sequence[Tokens],
    asked: Sequence[np.ndarray],
    first: int,
    *,
    num_rows: int,
    row_length: int,
) -> Batch:
    """Rows with one piece of a history each, from column 0 on.

    Args:
      tokens, asked: the pieces, and the times that their tokens ask about, or more.
      first: position of the first token of each piece.
    """
    fields: dict[str, Any] = {}
    for name in FIELDS:
        given = [getattr(piece, name) for piece in tokens]
        if given[0] is not None:
            fields[name] = np.zeros((num_rows, row_length, *given[0].shape[1:]), np.int32)
            for row, values in enumerate(given):
                fields[name][row, : len(values)] = values
    for name in ("query_time", "segment", "position"):
        fields[name] = np.zeros((num_rows, row_length), np.int32)
    for row, (piece, times) in enumerate(zip(tokens, asked, strict=True)):
        n = len(piece)
        fields["query_time"][row, :n], fields["segment"][row, :n] = times[:n], 1
        fields["position"][row, :n] = np.arange(first, first + n)
    return Batch(**fields)
