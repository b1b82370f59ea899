"""The events that baselines learn from: all but the last two of each user, as those of a model."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse


def is_training(offsets: Int[np.ndarray, " B1"]) -> np.ndarray:
    """[E] bool: all but the last two events of each user."""
    events, ends = np.diff(offsets), offsets[1:]
    mask = np.ones(int(offsets[-1]), bool)
    mask[ends[events >= 1] - 1] = False
    mask[ends[events >= 2] - 2] = False
    return mask


def popularity(
    offsets: Int[np.ndarray, " B1"], item: Int[np.ndarray, " E"], num_items: int
) -> Float[np.ndarray, " X1"]:
    """Training events of each item id, 0 to `num_items`."""
    counts = np.bincount(item[is_training(offsets)], minlength=num_items + 1)
    return counts.astype(np.float64)


def user_items(
    offsets: Int[np.ndarray, " B1"], item: Int[np.ndarray, " E"], num_items: int
) -> sparse.csr_array:
    """[B, X + 1] float32: 1 where a user had an item in training."""
    kept = is_training(offsets)
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[kept]
    pair = np.unique(user * (num_items + 1) + item[kept])
    user, had = np.divmod(pair, num_items + 1)
    ones = np.ones(len(pair), np.float32)
    return sparse.csr_array((ones, (user, had)), shape=(len(offsets) - 1, num_items + 1))
