"""One training step of ranking as a pure function of (state, batch, key)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from gr_jax.config import Config
from gr_jax.data.batches.batch import Batch, Impressions
from gr_jax.training.optimizer import Optimizer
from gr_jax.training.ranking.losses import are_regressions, ranking_loss
from gr_jax.training.state import TrainState
from gr_jax.training.tables.update import descend


def make_train_step(
    graphdef: nnx.GraphDef, optimizer: Optimizer, config: Config
) -> Callable[[TrainState, Batch | Impressions, PRNGKeyArray], tuple[TrainState, dict]]:
    """`train_step(state, batch, key) -> (state, metrics)`, to be jitted with the state donated.

    Metrics: `loss`, the weighted sum over tasks of the mean over their labels; and each task's mean as `loss/TASK`.
    """
    tasks = config.ranking.tasks
    weights = tuple(float(w) for w in config.ranking.weights) or (1.0,) * len(tasks)

    def objective(params: dict, batch: Batch | Impressions, *_: Any, key: PRNGKeyArray) -> Any:
        logits = nnx.merge(graphdef, params).rank(batch, key=key)
        assert batch.outcome is not None and batch.outcome_weight is not None
        loss, parts = ranking_loss(
            logits,
            batch.outcome,
            batch.outcome_weight,
            is_regression=are_regressions(tasks),
            weights=weights,
        )
        return loss, {f"loss/{task}": parts["task_loss"][y] for y, task in enumerate(tasks)}

    def train_step(
        state: TrainState, batch: Batch | Impressions, key: PRNGKeyArray
    ) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(key, state.step)
        of_step = functools.partial(objective, key=key)
        return descend(
            of_step,
            optimizer,
            state,
            batch,
            jax.random.fold_in(key, 1),
            exchange=config.mesh.exchange,
        )

    return train_step
