"""A Markov chain of items: what followed the last item most often."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from gr_jax.baselines.questions import Questions, sparse_ranks
from gr_jax.baselines.training_events import is_training

POPULARITY = 1e-4  # of a count: it decides among items that never followed, and ties


def transitions(
    offsets: Int[np.ndarray, " B1"], item: Int[np.ndarray, " E"], num_items: int
) -> sparse.csr_array:
    """[X + 1, X + 1] float64: how often the second item came right after the first in training."""
    training = is_training(offsets)
    follows = np.flatnonzero(training[1:]) + 1
    first_events = offsets[:-1][np.diff(offsets) > 0]
    follows = np.setdiff1d(follows, first_events, assume_unique=True)
    pair = item[follows - 1], item[follows]
    shape = num_items + 1, num_items + 1
    return sparse.csr_array((np.ones(len(follows)), pair), shape=shape)


def ranks(
    questions: Questions, following: sparse.csr_array, popularity: Float[np.ndarray, " X1"]
) -> Float[np.ndarray, " Q"]:
    """Ranks of the held-out items by transitions from the last item, then by popularity."""
    score = lambda part: following[part.item[part.target - 1]]
    return sparse_ranks(questions, POPULARITY * popularity, score)
