"""The items nearest to a vector: exactly, in chunks of the catalogue, or by faiss."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import time
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from gr_jax.config import ConfigError
from gr_jax.serving import buckets

# items scored at once: scores and masks are [Q, CHUNK], the largest arrays in memory
CHUNK = 65_536
MANY = 1024  # candidates from which on queries are scored one by one
MIN_K = 16  # the smallest k that is compiled
BACKENDS = ("exact", "faiss")

Ids = Int32[np.ndarray, " _"]


@runtime_checkable
class Index(Protocol):
    """Items by the dot product of their unit vectors with that of a query."""

    seconds: float  # to build it

    def search(
        self,
        queries: Float32[np.ndarray, "Q D"],
        k: int,
        *,
        removed: Sequence[Ids] | None = None,
        allowed: Sequence[Ids | None] | None = None,
    ) -> tuple[Int32[np.ndarray, "Q k"], Float32[np.ndarray, "Q k"]]:
        """The k best item ids and their scores, best first; of equal scores the smaller id first.

        Args:
          queries: unit vectors.
          k: number of items; if fewer are left, ids are 0 and scores -inf at the end.
          removed: item ids that are left out, for each query.
          allowed: item ids that alone may come, for each query; None = every item.
        """
        ...

    def scores(
        self, queries: Float32[np.ndarray, "Q D"], items: Int32[np.ndarray, "Q M"]
    ) -> Float32[np.ndarray, "Q M"]:
        """Scores of given items."""
        ...

    def warm_up(self, *, max_k: int, max_candidates: int, max_queries: int) -> None:
        """Compile `search` up to k = `max_k`, and `scores` up to `max_candidates` items."""
        ...


def build(
    vectors: Float[Array | np.ndarray, "rows D"], *, num_items: int, backend: str = "exact"
) -> Index:
    """The index of items 1 to `num_items`; row i of `vectors` is the unit vector of item i.

    Raises:
      ConfigError: no such backend, or faiss is not installed.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"index={backend!r}: must be one of {', '.join(BACKENDS)}")
    exact = ExactIndex(vectors, num_items=num_items)
    return exact if backend == "exact" else FaissIndex(exact)


class ExactIndex:
    """An index that scores every item; the vectors stay on the device."""

    def __init__(
        self, vectors: Float[Array | np.ndarray, "rows D"], *, num_items: int, chunk: int = CHUNK
    ):
        """Row i of `vectors` is the unit vector of item i; row 0 and those above are ignored."""
        start = time.perf_counter()
        self.num_items = num_items
        self.chunk = min(chunk, -(-(num_items + 1) // 128) * 128)
        rows = -(-(num_items + 1) // self.chunk) * self.chunk
        self.vectors = jnp.pad(
            jnp.asarray(vectors[: num_items + 1]), [(0, rows - num_items - 1), (0, 0)]
        )
        jax.block_until_ready(self.vectors)
        self.seconds = time.perf_counter() - start

    def search(
        self,
        queries: Float32[np.ndarray, "Q D"],
        k: int,
        *,
        removed: Sequence[Ids] | None = None,
        allowed: Sequence[Ids | None] | None = None,
    ) -> tuple[Int32[np.ndarray, "Q k"], Float32[np.ndarray, "Q k"]]:
        """As `Index.search`."""
        ids = np.zeros((len(queries), k), np.int32)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for part in buckets.parts(len(queries)):
            few = None if removed is None else removed[part]
            only = None if allowed is None else allowed[part]
            found = self._search(queries[part], min(k, self.num_items), few, only)
            ids[part, : found[0].shape[1]], scores[part, : found[1].shape[1]] = found
        return ids, scores

    def _search(
        self,
        queries: np.ndarray,
        k: int,
        removed: Sequence[Ids] | None,
        allowed: Sequence[Ids | None] | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        count, width = len(queries), buckets.power_of_four(k, least=MIN_K)
        rows = buckets.fitting(buckets.ROWS, count)
        padded = np.pad(queries, [(0, rows - count), (0, 0)])
        best = np.full((rows, width), -np.inf, np.float32), np.zeros((rows, width), np.int32)
        for first in range(0, len(self.vectors), self.chunk):
            mask = np.zeros((rows, self.chunk), bool)
            mask[:count] = self._left_out(first, count, removed, allowed)
            best = _merge(padded, self.vectors, np.int32(first), mask, *best, chunk=self.chunk)
        scores, ids = (np.asarray(x)[:count, :k] for x in best)
        return np.where(np.isneginf(scores), 0, ids), scores

    def _left_out(
        self,
        first: int,
        count: int,
        removed: Sequence[Ids] | None,
        allowed: Sequence[Ids | None] | None,
    ) -> Bool[np.ndarray, "Q chunk"]:
        """True for the items of a chunk that a query must not get."""
        last = first + self.chunk
        mask = np.zeros((count, self.chunk), bool)
        for q in range(count):
            if allowed is not None and (only := allowed[q]) is not None:
                mask[q] = True
                mask[q, _inside(only, first, last)] = False
            if removed is not None:
                mask[q, _inside(removed[q], first, last)] = True
        mask[:, max(0, self.num_items + 1 - first) :] = True
        if first == 0:
            mask[:, 0] = True  # padding
        return mask

    def scores(
        self, queries: Float32[np.ndarray, "Q D"], items: Int32[np.ndarray, "Q M"]
    ) -> Float32[np.ndarray, "Q M"]:
        """Scores of given items."""
        width = buckets.power_of_four(items.shape[1], least=buckets.SHORTEST)
        out = np.zeros(items.shape, np.float32)
        for part in buckets.parts(len(queries), _max_rows(width)):
            count = part.stop - part.start
            rows = buckets.fitting(buckets.ROWS, count)
            q = np.pad(queries[part], [(0, rows - count), (0, 0)])
            ids = np.pad(items[part], [(0, rows - count), (0, width - items.shape[1])])
            out[part] = np.asarray(_pick(q, self.vectors, ids))[:count, : items.shape[1]]
        return out

    def warm_up(self, *, max_k: int, max_candidates: int, max_queries: int) -> None:
        """Compile `search` up to k = `max_k`, and `scores` up to `max_candidates` items."""
        width = self.vectors.shape[1]
        for rows in buckets.rows_up_to(max_queries):
            queries = np.zeros((rows, width), np.float32)
            for k in buckets.powers_of_four(MIN_K, min(max_k, self.num_items)):
                self.search(queries, min(k, self.num_items))
            for m in buckets.powers_of_four(buckets.SHORTEST, max_candidates):
                if rows <= _max_rows(m):
                    self.scores(queries, np.ones((rows, m), np.int32))


class FaissIndex:
    """An approximate index: a graph (HNSW), so that a search scores few items and may miss some.

    Searches with an allow list are exact: they look at few items.
    """

    def __init__(self, exact: ExactIndex, *, neighbours: int = 32, effort: int = 128):
        """`neighbours`: edges of a node; `effort`: nodes that a search keeps in view."""
        if not importlib.util.find_spec("faiss"):
            raise ConfigError(
                "index='faiss' needs the package faiss-cpu: pip install 'gr-jax[faiss]'"
            )
        faiss: Any = importlib.import_module("faiss")

        start = time.perf_counter()
        self.exact, self.num_items = exact, exact.num_items
        vectors = np.asarray(exact.vectors)[1 : exact.num_items + 1]
        self._graph: Any = faiss.IndexHNSWFlat(
            vectors.shape[1], neighbours, faiss.METRIC_INNER_PRODUCT
        )
        self._graph.add(np.ascontiguousarray(vectors))
        self._effort, self._parameters = effort, faiss.SearchParametersHNSW
        self.seconds = exact.seconds + time.perf_counter() - start

    def search(
        self,
        queries: Float32[np.ndarray, "Q D"],
        k: int,
        *,
        removed: Sequence[Ids] | None = None,
        allowed: Sequence[Ids | None] | None = None,
    ) -> tuple[Int32[np.ndarray, "Q k"], Float32[np.ndarray, "Q k"]]:
        """As `Index.search`, but approximate."""
        if allowed is not None and any(x is not None for x in allowed):
            return self.exact.search(queries, k, removed=removed, allowed=allowed)
        most_removed = max((len(x) for x in removed), default=0) if removed is not None else 0
        wanted = min(k + most_removed, self.num_items)
        parameters = self._parameters(efSearch=max(self._effort, wanted))
        found_scores, found = self._graph.search(
            np.ascontiguousarray(queries), wanted, params=parameters
        )
        ids = np.zeros((len(queries), k), np.int32)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for q in range(len(queries)):
            item = found[q] + 1  # faiss gives -1 where it found no more
            keep = item > 0 if removed is None else (item > 0) & ~np.isin(item, removed[q])
            kept = np.flatnonzero(keep)[:k]
            ids[q, : len(kept)], scores[q, : len(kept)] = item[kept], found_scores[q, kept]
        return ids, scores

    def scores(
        self, queries: Float32[np.ndarray, "Q D"], items: Int32[np.ndarray, "Q M"]
    ) -> Float32[np.ndarray, "Q M"]:
        """As `ExactIndex.scores`."""
        return self.exact.scores(queries, items)

    def warm_up(self, *, max_k: int, max_candidates: int, max_queries: int) -> None:
        """As `ExactIndex.warm_up`."""
        self.exact.warm_up(max_k=max_k, max_candidates=max_candidates, max_queries=max_queries)


@functools.partial(jax.jit, static_argnames="chunk")
def _merge(
    queries: Float[Array, "Q D"],
    vectors: Float[Array, "rows D"],
    first: Int[Array, ""],
    mask: Bool[Array, "Q chunk"],
    best_scores: Float[Array, "Q k"],
    best_ids: Int[Array, "Q k"],
    *,
    chunk: int,
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """The best of the items so far and of the items of a chunk that are not masked."""
    items = jax.lax.dynamic_slice_in_dim(vectors, first, chunk)
    # Full float32, as in evaluation: a GPU would round the factors, and near ties decide ranks.
    scores = jnp.matmul(queries, items.T, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.concatenate([best_scores, jnp.where(mask, -jnp.inf, scores)], 1)
    ids = jnp.broadcast_to(first + jnp.arange(chunk, dtype=jnp.int32), mask.shape)
    # of equal scores the first: the smaller id
    top, place = jax.lax.top_k(scores, best_scores.shape[1])
    return top, jnp.take_along_axis(jnp.concatenate([best_ids, ids], 1), place, axis=1)


@jax.jit
def _pick(
    queries: Float[Array, "Q D"], vectors: Float[Array, "rows D"], ids: Int[Array, "Q M"]
) -> Float[Array, "Q M"]:
    """Scores of given items."""
    return jnp.einsum("qd,qmd->qm", queries, vectors[ids], precision=jax.lax.Precision.HIGHEST)


def _max_rows(candidates: int) -> int:
    """Queries that are scored together: their candidates' vectors are in memory at once."""
    return buckets.ROWS[-1] if candidates <= MANY else buckets.ROWS[0]


def _inside(ids: np.ndarray, first: int, last: int) -> np.ndarray:
    return ids[(ids >= first) & (ids < last)] - first
