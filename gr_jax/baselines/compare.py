"""All baselines of retrieval: each with the settings that are best on validation."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from gr_jax.baselines import ease, item_knn, markov
from gr_jax.baselines.questions import Questions, Scores, SparseScores, best_items
from gr_jax.baselines.training_events import popularity, user_items
from gr_jax.data.batches.splits import TrainingLog

SHRINKAGES = (0.0, 20.0)
RECENCIES = (1.0, 0.8)  # weight of an event of the history, to the power of the steps back
LISTED = 5 * 10**8  # scores of the test, of users times items, up to which there are lists: seconds
PENALTIES = (100.0, 250.0, 500.0)

Ranks = Float[np.ndarray, " Q"]  # 1 = best; inf = the held-out item is not ranked


class Baseline(NamedTuple):
    """A baseline that is yet to learn."""

    name: str
    settings: dict[str, float]
    learn: Callable[[], Scores]
    # learning takes long, and what is best is in the middle: once it gets worse, the further
    # settings are left out
    is_slow: bool = False


class Judged(NamedTuple):
    """The best settings of a baseline, and what they reach."""

    settings: dict[str, float]
    valid: float  # the metric that chose them
    test: Ranks
    best: Int[np.ndarray, "Q 10"] | None  # items of the lists of the test; None = would take long


def all_baselines(log: TrainingLog) -> list[Baseline]:
    """Every baseline with every setting, those of a name one after another.

    EASE is left out where its tables have no room.
    """
    count = functools.cache(lambda: popularity(log))
    had = functools.cache(lambda: user_items(log))
    nothing = lambda part: sparse.csr_array((len(part.target), log.num_items + 1))
    found = [
        Baseline("popularity", {}, lambda: SparseScores(count(), nothing)),
        Baseline("Markov", {}, lambda: markov.scores(markov.transitions(log), count())),
    ]

    tables = functools.cache(lambda: item_knn.similarities(had(), SHRINKAGES))
    for (number, shrinkage), recency in itertools.product(enumerate(SHRINKAGES), RECENCIES):
        learn = lambda number=number, recency=recency: item_knn.scores(tables()[number], recency)
        settings = {"shrinkage": shrinkage, "recency": recency}
        found.append(Baseline("item-kNN", settings, learn))

    for penalty in PENALTIES if log.num_items <= ease.MOST_ITEMS else ():
        learn = lambda penalty=penalty: ease.scores(ease.weights(had(), penalty))
        is_slow = log.num_items > ease.MANY_ITEMS
        found.append(Baseline("EASE", {"lambda": penalty}, learn, is_slow))
    return found


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
      tell: is called with the name of each baseline before it is learnt, and with the number of the
        setting if there are several.
    """
    best: dict[str, Judged] = {}
    has_lists = len(test.target) * log.num_items <= LISTED
    left = all_baselines(log)
    settings, tried, given_up = Counter(baseline.name for baseline in left), Counter(), set()
    while left:
        baseline = left.pop(0)  # its tables go with it
        name = baseline.name
        if name in given_up:
            continue
        tried[name] += 1
        tell(f"{name} {tried[name]}/{settings[name]}" if settings[name] > 1 else name)
        scores = baseline.learn()
        value = metric(scores.ranks(valid))
        if name not in best or value > best[name].valid:
            lists = best_items(test, scores) if has_lists else None
            best[name] = Judged(baseline.settings, value, scores.ranks(test), lists)
        elif baseline.is_slow:
            given_up.add(name)
        del scores, baseline
    return best
