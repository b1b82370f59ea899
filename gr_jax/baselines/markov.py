"""A Markov chain of items: what followed the last item most often."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import sparse

from gr_jax.baselines.questions import SparseScores
from gr_jax.data.batches.splits import TrainingLog

POPULARITY = 1e-4  # of a count: it decides among items that never followed, and ties


def transitions(log: TrainingLog) -> sparse.csr_array:
    """[X + 1, X + 1] float64: how often the second item came right after the first in training."""
    is_first = np.zeros(len(log.item) + 1, bool)
    is_first[log.offsets[:-1]] = True  # of a user without events: where another one's begin
    follows = np.flatnonzero(~is_first[:-1])
    pair = log.item[follows - 1], log.item[follows]
    shape = log.num_items + 1, log.num_items + 1
    return sparse.csr_array((np.ones(len(follows)), pair), shape=shape)


def scores(following: sparse.csr_array, popularity: Float[np.ndarray, " X1"]) -> SparseScores:
    """Scores by transitions from the last item of the history, then by popularity."""
    return SparseScores(POPULARITY * popularity, lambda part: following[part.item[part.target - 1]])
