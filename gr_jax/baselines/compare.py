"""All baselines of retrieval: each with the settings that are best on validation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import sparse

from gr_jax.baselines import ease, item_knn, markov
from gr_jax.baselines.questions import Questions, sparse_ranks
from gr_jax.baselines.training_events import popularity, user_items
from gr_jax.data.dataset import Events

SHRINKAGES = (0.0, 20.0)
RECENCIES = (1.0, 0.8)  # weight of an event of the history, to the power of the steps back
PENALTIES = (100.0, 250.0, 500.0)

Ranks = Float[np.ndarray, " Q"]  # 1 = best; inf = the held-out item is not ranked


class Baseline(NamedTuple):
    """A baseline that has learnt."""

    name: str
    settings: dict[str, float]
    ranks: Callable[[Questions], Ranks]


class Judged(NamedTuple):
    """The best settings of a baseline, and what they reach."""

    settings: dict[str, float]
    valid: float  # the metric that chose them
    test: Ranks


def learn_all(events: Events, num_items: int) -> Iterator[Baseline]:
    """Every baseline with every setting, one in memory at a time, of the training events.

    EASE is left out where its tables have no room.
    """
    of_events = events.offsets, events.item, num_items
    count = popularity(*of_events)
    nothing = lambda part: sparse.csr_array((len(part.target), num_items + 1))
    yield Baseline("popularity", {}, lambda asked: sparse_ranks(asked, count, nothing))

    following = markov.transitions(*of_events)
    yield Baseline(
        "Markov", {}, functools.partial(markov.ranks, following=following, popularity=count)
    )

    had = user_items(*of_events)
    for shrinkage in SHRINKAGES:
        similar = item_knn.similarities(had, shrinkage)
        for recency in RECENCIES:
            rank = functools.partial(item_knn.ranks, similar=similar, recency=recency)
            yield Baseline("item-kNN", {"shrinkage": shrinkage, "recency": recency}, rank)
    del similar

    if num_items <= ease.MOST_ITEMS:
        for penalty in PENALTIES:
            table = ease.weights(had, penalty)
            yield Baseline("EASE", {"lambda": penalty}, functools.partial(ease.ranks, table=table))


def compare(
    events: Events,
    num_items: int,
    valid: Questions,
    test: Questions,
    metric: Callable[[Ranks], float],
) -> dict[str, Judged]:
    """Every baseline by its name, with the settings of the highest `metric` on validation."""
    best: dict[str, Judged] = {}
    for name, settings, ranks in learn_all(events, num_items):
        value = metric(ranks(valid))
        if name not in best or value > best[name].valid:
            best[name] = Judged(settings, value, ranks(test))
    return best
