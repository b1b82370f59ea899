"""Padded arrays of the reference vectors as a `Batch` with one sequence per row."""

import jax.numpy as jnp
import numpy as np

from gr_jax.data.batches.batch import Batch


def padded_batch(item, lengths, timestamps) -> Batch:
    """One sequence per row; `timestamps` hold the time of the request at index `length`.

    Args:
      item: [B, N] ids, 0-padded.
      lengths: [B] real tokens.
      timestamps: [B, N] seconds.
    """
    b, n = np.asarray(item).shape
    real = np.arange(n) < np.asarray(lengths)[:, None]
    times = np.asarray(timestamps) - np.asarray(timestamps)[:, :1]
    next_times = np.concatenate([times[:, 1:], times[:, -1:]], axis=1)
    fields = (
        item,
        times,
        next_times,
        np.broadcast_to(np.arange(n), (b, n)),
        np.ones((b, n)),
        np.zeros((b, n)),
    )
    return Batch(*(jnp.asarray(np.where(real, field, 0), jnp.int32) for field in fields))
