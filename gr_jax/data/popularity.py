"""The baseline every sequence model has to beat: rank the catalogue by how often items occur in training."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

# Shortest log with a validation and a test target and at least one event before them.
MIN_EVENTS = 3


def popularity_ranks(
    offsets: Int[np.ndarray, " B1"], item: Int[np.ndarray, " T"], num_items: int, *, held_out: int
) -> Int[np.ndarray, " Q"]:
    """Leave-one-out ranks of the held-out items in a ranking by training count, 1 = best.

    Every item the user had before the target is left out of the ranking, the target itself never. Ties count
    against the target. Counts are over all events but the last two of each user.

    Args:
      offsets: user u owns events offsets[u] : offsets[u + 1], in time order.
      item: item ids, 1 to `num_items`.
      num_items: X.
      held_out: which event is the target: 1 = the last (test), 2 = the one before it (validation).

    Returns:
      Rank of the target of every user with at least 3 events, in user order; 1 to X.
    """
    events = np.diff(offsets)
    ends = offsets[1:]
    in_training = np.ones(len(item), bool)
    in_training[ends[events >= 1] - 1] = False
    in_training[ends[events >= 2] - 2] = False
    count = np.bincount(item[in_training], minlength=num_items + 1)[: num_items + 1]

    user = np.flatnonzero(events >= MIN_EVENTS)
    target = item[ends[user] - held_out]
    as_popular = num_items - np.searchsorted(np.sort(count[1:]), count[target])

    before = events[user] - held_out
    query = np.repeat(np.arange(len(user)), before)
    index = np.arange(before.sum()) + np.repeat(offsets[user] - np.cumsum(before) + before, before)
    pair = np.unique(query * (num_items + 1) + item[index])  # an item had twice is left out once
    query, seen = pair // (num_items + 1), pair % (num_items + 1)
    left_out = (count[seen] >= count[target[query]]) & (seen != target[query])
    return as_popular - np.bincount(query[left_out], minlength=len(user))
