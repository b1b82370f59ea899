"""Item-kNN: items that the same users had, by the cosine of their users.

Sarwar et al. 2001, "Item-based collaborative filtering recommendation algorithms".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from gr_jax.baselines.questions import DenseScores, Scores, SparseScores

PAIRS = 2 * 10**9  # of items that users had together: a quarter of a minute on one core
NEIGHBOURS = 10**8  # entries of the similarities in memory, 0.8 GB for each shrinkage
DENSE_ITEMS = 12_000  # up to here a dense table of similarities has 0.6 GB
BLOCK = 4096  # items whose similarities are computed at a time


def similarities(
    had: sparse.csr_array, shrinkages: Sequence[float], *, seed: int = 0
) -> list[sparse.csr_array]:
    """[X + 1, X + 1]: users of both items / (geometric mean of their users + shrinkage), for each.

    The most similar items of each, as many as there is room for: all of them in catalogues of up
    to 10,000 items, 100 of a million. Where users with many items would make too many pairs, a
    random part of the users counts. The pairs, which cost most, are counted once.

    Args:
      had: [B, X + 1], 1 where a user had an item.
      shrinkages: each lowers similarities that few users speak for.
      seed: of the choice of users.
    """
    had = _fewer_users(had, seed)
    users = np.asarray(had.sum(0))
    width = len(users)
    most = max(50, NEIGHBOURS // width)
    transposed, blocks = sparse.csr_array(had.T), [[] for _ in shrinkages]
    for first in range(0, width, BLOCK):
        block = transposed[first : first + BLOCK] @ had
        length = np.diff(block.indptr)
        owner = np.repeat(np.arange(len(length)), length) + first
        mean = np.sqrt(users[owner] * users[block.indices])
        together = np.where(owner == block.indices, 0, block.data)
        for kept, shrinkage in zip(blocks, shrinkages, strict=True):
            similarity = together / (mean + np.float32(shrinkage))
            rows = (similarity, block.indices, block.indptr)
            kept.append(_largest(sparse.csr_array(rows, shape=block.shape), most))
    return [sparse.csr_array(sparse.vstack(kept, format="csr")) for kept in blocks]


def scores(similar: sparse.csr_array, recency: float) -> Scores:
    """Scores by the sum of similarities to the items of the history.

    The similarity to an item k events before the last one counts `recency ** k`.
    """
    width = len(similar.indptr) - 1
    if width <= DENSE_ITEMS and similar.nnz > 0.05 * width * width:
        table = similar.toarray()
        return DenseScores(lambda part: part.histories(recency).toarray() @ table)
    score = lambda part: sparse.csr_array(part.histories(recency) @ similar, dtype=np.float64)
    return SparseScores(np.zeros(width), score, block=1024)


def _fewer_users(had: sparse.csr_array, seed: int) -> sparse.csr_array:
    """All users, or as many random ones as make `PAIRS` pairs of items."""
    pairs = np.square(np.diff(had.indptr).astype(np.float64))
    if pairs.sum() <= PAIRS:
        return had
    order = np.random.default_rng(seed).permutation(len(pairs))
    return had[np.sort(order[: np.searchsorted(np.cumsum(pairs[order]), PAIRS)])]


def _largest(rows: sparse.csr_array, most: int) -> sparse.csr_array:
    """The `most` largest entries of each row."""
    length = np.diff(rows.indptr)
    if length.max(initial=0) <= most:
        return rows
    owner = np.repeat(np.arange(len(length)), length)
    order = np.lexsort((rows.indices, np.negative(rows.data), owner))
    start = np.cumsum(length) - length
    kept = order[np.arange(len(order)) - start[owner] < most]
    data, column = rows.data[kept], rows.indices[kept]
    return sparse.csr_array((data, (owner[kept], column)), shape=rows.shape)
