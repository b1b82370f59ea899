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
from gr_jax.data.batches.splits import TrainingLog

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


def learn_all(log: TrainingLog, tell: Callable[[str], None]) -> Iterator[Baseline]:
    """Every baseline with every setting, of the training events, as few in memory as can be.

    EASE is left out where its tables have no room. What is learnt next is told.
    """
    tell("popularity")
    count = popularity(log)
    nothing = lambda part: sparse.csr_array((len(part.target), log.num_items + 1))
    yield Baseline("popularity", {}, lambda asked: sparse_ranks(asked, count, nothing))

    tell("Markov")
    following = markov.transitions(log)
    yield Baseline(
        "Markov", {}, functools.partial(markov.ranks, following=following, popularity=count)
    )

    tell("item-kNN")
    had = user_items(log)
    tables = item_knn.similarities(had, SHRINKAGES)
    for shrinkage in SHRINKAGES:
        similar = tables.pop(0)
        for recency in RECENCIES:
            rank = functools.partial(item_knn.ranks, similar=similar, recency=recency)
            yield Baseline("item-kNN", {"shrinkage": shrinkage, "recency": recency}, rank)
    del similar

    penalties = PENALTIES if log.num_items <= ease.MOST_ITEMS else ()
    for number, penalty in enumerate(penalties, 1):
        tell(f"EASE {number}/{len(penalties)}")
        table = ease.weights(had, penalty)
        yield Baseline("EASE", {"lambda": penalty}, functools.partial(ease.ranks, table=table))


def compare(
    log: TrainingLog,
    valid: Questions,
    test: Questions,
    metric: Callable[[Ranks], float],
    tell: Callable[[str], None],
) -> dict[str, Judged]:
    """Every baseline by its name, with the settings of the highest `metric` on validation.

    Args:
      log: what they learn from.
      valid, test: what they are asked.
      metric: of ranks.
      tell: is called with the name of each baseline before it is learnt.
    """
    best: dict[str, Judged] = {}
    for name, settings, ranks in learn_all(log, tell):
        value = metric(ranks(valid))
        if name not in best or value > best[name].valid:
            best[name] = Judged(settings, value, ranks(test))
    return best
