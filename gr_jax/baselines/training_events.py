"""What baselines count among the training events."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import sparse

from gr_jax.data.batches.splits import TrainingLog


def popularity(log: TrainingLog) -> Float[np.ndarray, " X1"]:
    """Training events of each item id, 0 to X."""
    return np.bincount(log.item, minlength=log.num_items + 1).astype(np.float64)


def user_items(log: TrainingLog) -> sparse.csr_array:
    """[B, X + 1] float32: 1 where a user had an item in training."""
    users, width = len(log.offsets) - 1, log.num_items + 1
    user = np.repeat(np.arange(users), np.diff(log.offsets))
    pair = np.unique(user * width + log.item)
    user, had = np.divmod(pair, width)
    return sparse.csr_array((np.ones(len(pair), np.float32), (user, had)), shape=(users, width))
