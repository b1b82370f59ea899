"""Metrics beside accuracy: how much of the catalogue is recommended, how popular what is found is.

Popularity is the number of training events of an item.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from gr_jax.training.retrieval.metrics import Ranks, grouped

PARTS = ("popularity_head", "popularity_mid", "popularity_tail")


def popularity_part(popularity: Float[np.ndarray, " X1"]) -> Int[np.ndarray, " X1"]:
    """The third of the events that each item belongs to: 0 = head, 1 = mid, 2 = tail.

    From the most popular item on, items with a third of all training events are the head, those
    with the next third are mid. Items without events are of the tail.
    """
    order = np.argsort(-popularity, kind="stable")
    events = popularity[order]
    share = (np.cumsum(events) - events) / max(1.0, events.sum())  # of more popular items
    part = np.empty(len(popularity), np.int64)
    part[order] = np.where(events > 0, np.searchsorted([1 / 3, 2 / 3], share, side="right"), 2)
    return part


def by_popularity(
    ranks: Ranks, target: Int[np.ndarray, " Q"], popularity: Float[np.ndarray, " X1"]
) -> dict[str, float]:
    """hr@10, ndcg@10 and queries of the targets of each `popularity_part`; and their `cold` share.

    A target is cold if its item has no training event. Names are such as `hr@10/popularity_head`.
    """
    cold = {"cold": float(np.mean(popularity[target] == 0))}
    return grouped(ranks, popularity_part(popularity)[target], PARTS) | cold


def of_lists(
    items: Int[np.ndarray, "Q 10"], popularity: Float[np.ndarray, " X1"]
) -> dict[str, float]:
    """Metrics of the lists of 10 items that the users of a split would get.

    `coverage@10` is the share of the catalogue that is in any list. `novelty@10` is the mean of
    -log2(share of the training events) over the items of all lists, in bits; an item without
    events counts as one with one.

    Args:
      items: ids, 0 = none.
      popularity: of each id, entry 0 being no item.
    """
    listed = items[items > 0]
    bits = np.log2(max(1.0, popularity.sum())) - np.log2(np.maximum(popularity[listed], 1))
    return {
        "coverage@10": len(np.unique(listed)) / (len(popularity) - 1),
        "novelty@10": float(bits.mean()) if len(bits) else 0.0,
    }
