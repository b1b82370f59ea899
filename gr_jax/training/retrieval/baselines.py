"""The classical recommenders that a retrieval model is compared with, on its own test."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from gr_jax.baselines.compare import Judged, compare
from gr_jax.baselines.questions import Questions
from gr_jax.baselines.training_events import popularity
from gr_jax.data.batches.evaluation import EvaluationBatches
from gr_jax.data.batches.splits import TrainingLog
from gr_jax.training.retrieval import beyond_accuracy, metrics


def baselines(
    log: TrainingLog,
    valid: EvaluationBatches,
    test: EvaluationBatches,
    *,
    at: tuple[int, ...],
    tell: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """Metrics on the test split of each baseline, by its name, with the best validated settings.

    They see the histories that the model sees, and are judged for the same users by the same rule
    of exclusion.

    Args:
      log: the training events, from which they learn.
      valid, test: what the model is asked.
      at: K of further metrics.
      tell: is called with the name of each baseline before it is learnt.
    """
    asked, count = questions(test).asked, popularity(log)
    results = {}
    for name, found in judged(log, valid, test, tell).items():
        values = metrics.rank_means(found.test, at)
        values |= beyond_accuracy.by_popularity(found.test, asked, count)
        lists = {} if found.best is None else beyond_accuracy.of_lists(found.best, count)
        results[name] = values | lists
    return results


def judged(
    log: TrainingLog,
    valid: EvaluationBatches,
    test: EvaluationBatches,
    tell: Callable[[str], None] = lambda name: None,
) -> dict[str, Judged]:
    """The best settings of each baseline on validation, and the ranks of each user of the test.

    Arguments as of `baselines`.
    """
    metric = functools.partial(metrics.ndcg, k=10)
    return compare(log, questions(valid), questions(test), metric, tell)


def questions(batches: EvaluationBatches) -> Questions:
    """The held-out events of an evaluation, in the order of its users."""
    seen_from, target = batches.seen(batches.spans)
    item = np.asarray(batches.dataset.events.item)
    begin = batches.spans.begin.astype(np.int64)
    return Questions(item, begin, seen_from, target, batches.dataset.num_items)
