"""Histories -> query vectors, by one compiled program for each bucket of lengths and rows (retrieval)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32, Int

from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.tokenizer import TokenScheme
from gr_jax.data.dataset import Dataset
from gr_jax.serving import buckets
from gr_jax.serving.history import History, one_a_row

# (parameters, rows, column of each row's last token) -> unit vectors [R, D]
Encode = Callable[[Any, Batch, Any], Array]


class Encoder:
    """The vectors that ask what comes next, of histories with one sequence a row; nothing is kept between calls."""

    def __init__(
        self,
        encode: Encode,
        params: Any,
        dataset: Dataset,
        scheme: TokenScheme,
        *,
        max_length: int,
        lengths: tuple[int, ...] = (),
    ):
        """`max_length`: most events of a history that the model sees; `lengths`: of rows; () = powers of two."""
        self._encode, self._params = encode, params
        self.dataset, self.scheme, self.max_length = dataset, scheme, max_length
        self.lengths = lengths or buckets.lengths(scheme.max_tokens(max_length))

    def __call__(self, histories: Sequence[History]) -> Float32[np.ndarray, "B D"]:
        """A unit vector for each history; none may be empty."""
        order = np.argsort(
            [len(history) for history in histories], kind="stable"
        )  # neighbours share a bucket
        parts = [
            self._part([histories[i] for i in order[part]])
            for part in buckets.parts(len(histories))
        ]
        vectors = np.concatenate(parts)
        vectors[order] = vectors.copy()
        return vectors

    def rows(
        self, histories: Sequence[History], *, least: int = 1
    ) -> tuple[Batch, Int[np.ndarray, " R"]]:
        """Padded rows of at least `least` tokens with one history each, and the column of each row's last token."""
        num_rows = buckets.fitting(buckets.ROWS, len(histories))
        batch, count = one_a_row(
            histories,
            self.dataset,
            self.scheme,
            max_length=self.max_length,
            with_asked=False,
            num_rows=num_rows,
            room=lambda longest: buckets.fitting(self.lengths, max(least, longest)),
        )
        return batch, np.pad(count - 1, (0, num_rows - len(histories))).astype(np.int32)

    def _part(self, histories: Sequence[History]) -> Float32[np.ndarray, "B D"]:
        return np.asarray(self._encode(self._params, *self.rows(histories)))[: len(histories)]

    def warm_up(self, *, most_rows: int) -> None:
        """Compiles every bucket of calls with up to `most_rows` histories."""
        history = first_item(self.dataset)
        for length in self.lengths:
            for rows in buckets.rows_up_to(most_rows):
                batch, last = self.rows([history] * rows, least=length)
                jax.block_until_ready(self._encode(self._params, batch, last))


def first_item(dataset: Dataset) -> History:
    """A history of one event, for a warm-up."""
    time = dataset.meta["time_max"]
    return History(
        np.ones(1, np.int32), np.full(1, time, np.int64), np.zeros(1, np.int32), -1, time, 0
    )
