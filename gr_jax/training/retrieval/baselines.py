"""The classical recommenders that a retrieval model is compared with, on its own test."""

from __future__ import annotations

import functools

import numpy as np

from gr_jax.baselines.compare import compare
from gr_jax.baselines.questions import Questions
from gr_jax.data.batches.evaluation import EvaluationBatches
from gr_jax.training.retrieval import metrics


def baselines(valid: EvaluationBatches, test: EvaluationBatches) -> dict[str, dict[str, float]]:
    """Metrics on the test split of each baseline, by its name, with the best validated settings.

    They learn from the training events, see the histories that the model sees, and are judged for
    the same users by the same rule of exclusion.
    """
    dataset = test.dataset
    judged = compare(
        dataset.events,
        dataset.num_items,
        questions(valid),
        questions(test),
        functools.partial(metrics.ndcg, k=10),
    )
    return {name: metrics.rank_means(found.test) for name, found in judged.items()}


def questions(batches: EvaluationBatches) -> Questions:
    """The held-out events of an evaluation, in the order of its users."""
    seen_from, target = batches.seen(batches.spans)
    item = np.asarray(batches.dataset.events.item)
    begin = batches.spans.begin.astype(np.int64)
    return Questions(item, begin, seen_from, target, batches.dataset.num_items)
