"""Predictions and metrics of a split, batch by batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from gr_jax.data.batches.batch import Batch, Impressions
from gr_jax.data.batches.ranking import Labels
from gr_jax.training import sharding
from gr_jax.training.lookahead import one_behind
from gr_jax.training.ranking import metrics
from gr_jax.training.ranking.losses import are_regressions
from gr_jax.training.run import Run


def make_evaluator(run: Run) -> Callable[[dict, Any], dict[str, float]]:
    """`evaluate(params, rows) -> metrics` of the events that the rows judge; see `metrics.summarise`."""
    tasks = run.config.ranking.tasks
    squash = ~np.array(are_regressions(tasks))

    @functools.partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
    def predict(params: dict, batch: Batch | Impressions) -> Float[Array, "T Y"]:
        logits = nnx.merge(run.graphdef, params).rank(batch)
        logits = logits.reshape(-1, len(tasks))
        return jnp.where(squash, jax.nn.sigmoid(logits), logits)

    on_mesh = sharding.on_mesh(run.mesh, predict)

    def evaluate(params: dict, rows: Any) -> dict[str, float]:
        predictions, judged = predict_all(lambda batch: on_mesh(params, batch), rows, run)
        return metrics.summarise(
            predictions,
            judged.outcome,
            judged.known,
            judged.user,
            judged.history,
            tasks,
            are_regressions(tasks),
        )

    return evaluate


def predict_all(predict: Callable, rows: Any, run: Run) -> tuple[Float[np.ndarray, "T Y"], Labels]:
    """Predictions of all events that `rows` judge, and the events."""

    def predicted() -> Iterator[tuple[Array, Labels]]:
        for index in range(len(rows)):
            batch, labels = rows.batch(index)
            yield predict(sharding.put_whole(batch, sharding.batch_sharding(run.mesh))), labels

    predictions, judged = [], []
    for values, labels in one_behind(predicted()):
        predictions.append(np.asarray(values)[labels.place])
        judged.append(labels)
    fields = ("place", "user", "history", "outcome", "known")
    return np.concatenate(predictions), Labels(
        *(np.concatenate([getattr(x, f) for x in judged]) for f in fields)
    )
