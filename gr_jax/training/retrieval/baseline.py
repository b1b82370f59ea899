"""The popularity baseline: rank the catalogue by how often items occur in training."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from gr_jax.data.batches.packing import token_index


def training_counts(
    offsets: Int[np.ndarray, " B1"], item: Int[np.ndarray, " T"], num_items: int
) -> Int[np.ndarray, " X1"]:
    """Occurrences of each item id, 0 to `num_items`, in all events but the last two of each user.

    Args:
      offsets: user u owns events offsets[u] : offsets[u + 1], in time order.
      item: item ids, 1 to `num_items`.
      num_items: X.
    """
    events = np.diff(offsets)
    ends = offsets[1:]
    in_training = np.ones(len(item), bool)
    in_training[ends[events >= 1] - 1] = False
    in_training[ends[events >= 2] - 2] = False
    return np.bincount(item[in_training], minlength=num_items + 1)[: num_items + 1]


def popularity_ranks(
    count: Int[np.ndarray, " X1"],
    item: Int[np.ndarray, " T"],
    seen_from: Int[np.ndarray, " Q"],
    target: Int[np.ndarray, " Q"],
) -> Float[np.ndarray, " Q"]:
    """Ranks of held-out items in a ranking by count, 1 = best; inf where the item is left out.

    The items that a user had from `seen_from` on before the target are left out of the ranking.
    Ties count against the target.

    Args:
      count: of each item id, as `training_counts`.
      item: item ids of all events.
      seen_from: flat index of the first event whose item is not ranked; if it is that of the
        target, the whole catalogue is ranked.
      target: flat index of each held-out event.

    Returns:
      Rank of each target, 1 to X or inf.
    """
    num_items, asked = len(count) - 1, item[target]
    as_popular = num_items - np.searchsorted(np.sort(count[1:]), count[asked])

    before = target - seen_from
    query = np.repeat(np.arange(len(target)), before)
    pair = np.unique(
        query * (num_items + 1) + item[token_index(seen_from, before)]
    )  # an item had twice counts once
    query, seen = pair // (num_items + 1), pair % (num_items + 1)
    above = count[seen] >= count[asked[query]]
    ranks = as_popular - np.bincount(query[above], minlength=len(target)).astype(np.float64)
    ranks[query[seen == asked[query]]] = np.inf
    return ranks
