"""The baseline of ranking: predict the mean outcome of the past for every event."""

from __future__ import annotations

import numpy as np

from gr_jax.data.batches import impressions
from gr_jax.data.batches.sequences import Split
from gr_jax.data.batches.tokenizer import outcomes
from gr_jax.training.ranking import metrics
from gr_jax.training.ranking.losses import are_regressions
from gr_jax.training.run import Run


def constant_rate(run: Run, bounds: dict[Split, tuple[int, int]]) -> dict[str, float]:
    """Metrics on the test split of predicting the mean outcome before it for every event."""
    dataset, tasks = run.dataset, run.config.ranking.tasks
    low, high = bounds["test"]
    past = impressions.events_between(dataset.events, bounds["train"][0], low)
    event = impressions.events_between(dataset.events, low, high)
    value, known = outcomes(dataset.events, dataset.catalogue, past, tasks)
    mean = (value * known).sum(0) / np.maximum(known.sum(0), 1)
    value, known = outcomes(dataset.events, dataset.catalogue, event, tasks)
    user = dataset.events.users_of(event)
    prediction = np.broadcast_to(mean, value.shape)
    history = event - dataset.events.offsets[user]
    return metrics.summarise(prediction, value, known, user, history, tasks, are_regressions(tasks))
