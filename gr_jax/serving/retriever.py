"""Retrieval: histories -> query vectors -> the nearest items of an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float32, Int

from gr_jax.baselines.knn_vectors import KnnVectors
from gr_jax.data.batches.batch import Batch
from gr_jax.serving import buckets
from gr_jax.serving.history import History, warm_up_history
from gr_jax.serving.index import Index
from gr_jax.serving.query import Cache, Query, Scored
from gr_jax.serving.rows import RowMaker

# (rows, column of the last token of each row) -> unit vectors [R, D]
Encode = Callable[[Batch, Int[np.ndarray, " R"]], Array]


@runtime_checkable
class HistoryEncoder(Protocol):
    """Histories -> unit vectors that ask what comes next; with a cache or without."""

    maker: RowMaker  # of the rows of histories

    @property
    def cache(self) -> Cache | None:
        """The cache of histories, if there is one."""
        ...

    def __call__(self, histories: Sequence[History]) -> Float32[np.ndarray, "B D"]:
        """A unit vector for each history; none may be empty."""
        ...

    def warm_up(self, *, max_histories: int) -> None:
        """Compile everything that calls with up to this many histories need."""
        ...


class Encoder:
    """Query vectors by one program for each bucket of lengths and rows; nothing is kept."""

    cache = None

    def __init__(self, encode: Encode, maker: RowMaker, *, lengths: tuple[int, ...] = ()):
        """`lengths`: of rows; () = powers of two."""
        self._encode, self.maker = encode, maker
        self.lengths = lengths or buckets.lengths(maker.scheme.max_tokens(maker.max_events))

    def __call__(self, histories: Sequence[History]) -> Float32[np.ndarray, "B D"]:
        """A unit vector for each history; none may be empty."""
        # Neighbours in the order of lengths share a bucket.
        order = np.argsort([len(history) for history in histories], kind="stable")
        vectors = []
        for part in buckets.parts(len(histories)):
            some = [histories[i] for i in order[part]]
            rows = query_rows(some, self.maker, lengths=self.lengths)
            vectors.append(np.asarray(self._encode(*rows))[: len(some)])
        found = np.concatenate(vectors)
        found[order] = found.copy()
        return found

    def warm_up(self, *, max_histories: int) -> None:
        """Compile every bucket of calls with up to this many histories."""
        history = warm_up_history(self.maker.dataset)
        for length in self.lengths:
            for rows in buckets.rows_up_to(max_histories):
                batch, last = query_rows(
                    [history] * rows, self.maker, lengths=self.lengths, min_length=length
                )
                jax.block_until_ready(self._encode(batch, last))


def query_rows(
    histories: Sequence[History],
    maker: RowMaker,
    *,
    lengths: tuple[int, ...],
    min_length: int = 1,
) -> tuple[Batch, Int[np.ndarray, " R"]]:
    """Padded rows of one history each, and the column of each row's last token.

    Args:
      histories: histories, none of them empty.
      maker: of the run.
      lengths: of rows; the smallest that fits is taken.
      min_length: at least this.
    """
    num_rows = buckets.fitting(buckets.ROWS, len(histories))
    batch, count = maker.padded(
        histories,
        with_asked=False,
        num_rows=num_rows,
        room=lambda longest: buckets.fitting(lengths, max(min_length, longest)),
    )
    return batch, np.pad(count - 1, (0, num_rows - len(histories))).astype(np.int32)


class KnnEncoder:
    """An encoder whose vectors have those of item-kNN behind them."""

    def __init__(self, encoder: HistoryEncoder, knn: KnnVectors, temperature: float):
        """`temperature`: of the model, whose scores are its logits times that."""
        self.encoder, self.knn, self.temperature = encoder, knn, temperature
        self.maker = encoder.maker

    @property
    def cache(self) -> Cache | None:
        """The cache of histories, if there is one."""
        return self.encoder.cache

    def __call__(self, histories: Sequence[History]) -> Float32[np.ndarray, "B D"]:
        """A vector for each history; none may be empty."""
        visible = [history.item[-self.maker.max_events :] for history in histories]
        end = np.cumsum([len(items) for items in visible])
        begin = np.concatenate([[0], end[:-1]])
        # behind the events the place of the one that is asked for
        item = np.append(np.concatenate(visible), np.int32(0))
        return self.with_knn(self.encoder(histories), item, begin, end)

    def with_knn(
        self,
        vectors: Float32[np.ndarray, "B D"],
        item: Int[np.ndarray, " E"],
        begin: Int[np.ndarray, " B"],
        end: Int[np.ndarray, " B"],
    ) -> Float32[np.ndarray, "B Dr"]:
        """Vectors of the model with those of item-kNN, of the items begin .. end of each."""
        of_knn = self.knn.queries(item, begin, end) * np.float32(self.temperature)
        return np.concatenate([vectors, of_knn], axis=1)

    def warm_up(self, *, max_histories: int) -> None:
        """Compile everything that calls with up to this many histories need."""
        self.encoder.warm_up(max_histories=max_histories)


def with_knn(
    encoder: HistoryEncoder,
    vectors: Float32[np.ndarray, "entries D"],
    knn: KnnVectors | None,
    temperature: float,
) -> tuple[HistoryEncoder, Float32[np.ndarray, "_ Dr"]]:
    """An encoder and the vectors of items, both with those of item-kNN behind them if given."""
    if knn is None:
        return encoder, vectors
    items = np.concatenate([vectors[: len(knn.items)], knn.items], axis=1)
    return KnnEncoder(encoder, knn, temperature), items


class Retriever:
    """Answers by the product of a history's vector with those of the items.

    Attributes:
      encoder: of histories. index: of items.
    """

    tasks: tuple[str, ...] = ()

    def __init__(self, encoder: HistoryEncoder, index: Index):
        self.encoder, self.index = encoder, index

    @property
    def cache(self) -> Cache | None:
        """The cache of histories, if there is one."""
        return self.encoder.cache

    def can_answer(self, query: Query) -> bool:
        """True if the history holds an event: without one there is no vector."""
        return len(query.history) > 0

    def work(self, query: Query) -> float:
        """Tokens of the history, and a fiftieth for each candidate, which is one product."""
        candidates = () if query.candidates is None else query.candidates
        return 1.0 + self.encoder.maker.max_tokens(query.history) + len(candidates) / 50

    def answer(self, queries: Sequence[Query]) -> list[Scored]:
        """The answers, computed together; each is what it would be alone."""
        vectors = self.encoder([query.history for query in queries])
        found: dict[int, Scored] = {}
        best = [i for i, query in enumerate(queries) if query.candidates is None]
        if best:
            found |= zip(best, self._search([queries[i] for i in best], vectors[best]), strict=True)
        scored = [
            (i, query.candidates) for i, query in enumerate(queries) if query.candidates is not None
        ]
        if scored:
            width = max(1, *(len(ids) for _, ids in scored))
            items = np.stack([np.pad(ids, (0, width - len(ids))) for _, ids in scored])
            scores = self.index.scores(vectors[[i for i, _ in scored]], items)
            for row, (i, ids) in enumerate(scored):
                found[i] = Scored(ids, scores[row, : len(ids)])
        return [found[i] for i in range(len(queries))]

    def _search(
        self, queries: Sequence[Query], vectors: Float32[np.ndarray, "Q D"]
    ) -> list[Scored]:
        ids, scores = self.index.search(
            vectors,
            max(query.k for query in queries),
            removed=[query.removed for query in queries],
            allowed=[query.allowed for query in queries],
        )
        counts = [np.count_nonzero(row[: query.k]) for query, row in zip(queries, ids, strict=True)]
        return [Scored(ids[row, :n], scores[row, :n]) for row, n in enumerate(counts)]

    def warm_up(self, *, max_queries: int, max_k: int, max_candidates: int) -> None:
        """Compile everything that calls up to these sizes need."""
        self.encoder.warm_up(max_histories=max_queries)
        self.index.warm_up(max_k=max_k, max_candidates=max_candidates, max_queries=max_queries)

    def description(self) -> str:
        """What answers, for the line that a server prints."""
        return f"index built in {self.index.seconds:.2f} s"
