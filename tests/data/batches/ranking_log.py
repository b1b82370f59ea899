"""Small random logs with actions, ratings, features and slow series, in memory."""

from pathlib import Path

import numpy as np

from gr_jax.data.dataset import Catalogue, Dataset, Events

ACTIONS = ("watched", "liked")


def random_dataset(seed: int, *, users: int = 4, events: int = 9, features: bool = True) -> Dataset:
    """A log with ties in time, missing ratings, users without series, items with few features."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, events + 1, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = [np.sort(rng.integers(0, 3 * events, n)) * 100 + 1_000_000 for n in lengths]
    items, total = 7, int(offsets[-1])
    rating = rng.integers(1, 6, total).astype(np.float32)
    rating[rng.random(total) < 0.2] = np.nan
    columns = {}
    if features:
        counts = rng.integers(0, 4, users)
        columns = {
            "user_features": rng.integers(0, 9, (users, 2)).astype(np.int32),
            "item_features": np.vstack([np.zeros((1, 3)), rng.integers(0, 9, (items, 3))]).astype(
                np.int32
            ),
            "series_offsets": np.concatenate([[0], np.cumsum(counts)]),
            "series_value": rng.integers(1, 9, counts.sum()).astype(np.int32),
            "series_time": np.concatenate([np.sort(rng.integers(0, 3 * events, n)) for n in counts])
            * 100
            + 1_000_000,
        }
        columns["series_time"] = columns["series_time"].astype(np.int64)
    meta = {"actions": list(ACTIONS), "items": items, "num_feature_values": 8 if features else 0}
    catalogue = Catalogue(Path("nowhere"), meta, columns.pop("item_features", None))
    events = Events(
        offsets=offsets.astype(np.int64),
        item=rng.integers(1, items + 1, total).astype(np.int32),
        timestamp=np.concatenate(times).astype(np.int64),
        rating=rating,
        action=rng.integers(0, 4, total).astype(np.int32),
        **columns,
    )
    return Dataset(catalogue, events)
