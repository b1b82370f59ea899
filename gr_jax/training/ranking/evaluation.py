"""Predictions and metrics of a split, batch by batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from gr_jax.data.batches.batch import Batch, Impressions, Labels
from gr_jax.data.batches.ranking import LabelPlan
from gr_jax.models.heads import are_regressions
from gr_jax.training import sharding
from gr_jax.training.lookahead import one_behind
from gr_jax.training.ranking import metrics
from gr_jax.training.run import Run


def make_evaluator(run: Run) -> Callable[[dict, LabelPlan], dict[str, float]]:
    """`evaluate(params, rows)`: `metrics.summarise` of the labelled events of `rows`."""
    tasks = run.config.ranking.tasks

    @functools.partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
    def predict(params: dict, batch: Batch | Impressions) -> Float[Array, "T Y"]:
        model = nnx.merge(run.graphdef, params)
        return model.predictions(model.rank(batch)).reshape(-1, len(tasks))

    on_mesh = sharding.on_mesh(run.mesh, predict)

    def evaluate(params: dict, rows: LabelPlan) -> dict[str, float]:
        predictions, labelled = predict_all(lambda batch: on_mesh(params, batch), rows, run)
        return metrics.summarise(
            predictions,
            labelled.outcome,
            labelled.known,
            labelled.user,
            labelled.history,
            tasks,
            are_regressions(tasks),
        )

    return evaluate


def predict_all(
    predict: Callable, rows: LabelPlan, run: Run
) -> tuple[Float[np.ndarray, "T Y"], Labels]:
    """Predictions of all labelled events of `rows`, and these events."""

    def predicted() -> Iterator[tuple[Array, Labels]]:
        for index in range(len(rows)):
            batch, labels = rows.batch(index)
            yield predict(sharding.put_whole(batch, sharding.batch_sharding(run.mesh))), labels

    predictions, labelled = [], []
    for values, labels in one_behind(predicted()):
        predictions.append(np.asarray(values)[labels.place])
        labelled.append(labels)
    fields = ("place", "user", "history", "outcome", "known")
    return np.concatenate(predictions), Labels(
        *(np.concatenate([getattr(x, f) for x in labelled]) for f in fields)
    )
