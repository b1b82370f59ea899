"""A dataset in memory with random items and times, for tests that need no files."""

from pathlib import Path

import numpy as np

from gr_jax.data.dataset import Catalogue, Dataset, Events


def random_log(rng: np.random.Generator, *, counts: np.ndarray, num_items: int) -> Dataset:
    """User u has counts[u] events; items repeat, times increase."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    total = int(offsets[-1])
    item = rng.integers(1, num_items + 1, total).astype(np.int32)
    events = Events(offsets, item, timestamp=np.cumsum(rng.integers(1, 10**5, total)))
    return Dataset(Catalogue(Path("."), {"items": num_items}), events)
