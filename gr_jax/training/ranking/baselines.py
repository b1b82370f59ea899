"""The baselines of ranking, on the test of a run: a constant, means, and a regression on counts."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from jaxtyping import Float

from gr_jax.baselines import counts
from gr_jax.data.batches import impressions
from gr_jax.data.batches.splits import Split
from gr_jax.data.batches.tokenizer import outcomes
from gr_jax.data.dataset import Dataset
from gr_jax.models.heads import are_regressions
from gr_jax.training.ranking import metrics


def baselines(
    dataset: Dataset, tasks: tuple[str, ...], bounds: dict[Split, tuple[int, int]]
) -> dict[str, dict[str, float]]:
    """Metrics on the test split of each baseline of `counts`, by its name.

    They are fitted to all events before the test.

    Args:
      dataset: events with the labels of the tasks.
      tasks: names of Y tasks.
      bounds: first and last moment of each split.
    """
    events, (low, high) = dataset.events, bounds["test"]
    event = impressions.events_between(events, bounds["train"][0], high)
    value, known = outcomes(events, dataset.catalogue, event, tasks)
    user, training = events.users_of(event), events.timestamp[event] < low

    found: dict[str, list[Float[np.ndarray, " E"]]] = defaultdict(list)
    regressions = are_regressions(tasks)
    for y, is_regression in enumerate(regressions):
        of_task = value[:, y].astype(np.float64), known[:, y] > 0
        labels = counts.Labels(user, events.item[event], *of_task, is_regression)
        for name, prediction in counts.predictions(labels, training).items():
            found[name].append(prediction[~training])

    event, user, value, known = (x[~training] for x in (event, user, value, known))
    history = event - events.offsets[user]
    return {
        name: metrics.summarise(
            np.stack(columns, axis=1), value, known, user, history, tasks, regressions
        )
        for name, columns in found.items()
    }
