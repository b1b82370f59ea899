"""One training step of ranking as a pure function of (state, batch, key)."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from gr_jax.config import Config
from gr_jax.data.batches.batch import Batch, Impressions
from gr_jax.models.heads import are_regressions
from gr_jax.models.noise import Key, key_of_rows
from gr_jax.training.ranking.losses import ranking_loss
from gr_jax.training.state import TrainState
from gr_jax.training.tables.rowwise import Optimizer
from gr_jax.training.tables.update import make_tables


def make_train_step(
    graphdef: nnx.GraphDef, optimizer: Optimizer, config: Config
) -> Callable[[TrainState, Batch | Impressions, PRNGKeyArray], tuple[TrainState, dict]]:
    """`train_step(state, batch, key) -> (state, metrics)`, to be jitted with the state donated.

    Metrics: `loss`, the weighted sum over tasks of the mean over their labels; and each task's mean
    as `loss/TASK`.
    """
    tasks = config.ranking.tasks
    weights = tuple(float(w) for w in config.ranking.weights) or (1.0,) * len(tasks)
    tables = make_tables(optimizer, config.mesh.exchange)

    def loss_fn(params: dict, inputs: Batch | Impressions, key: Key) -> tuple[Array, dict]:
        logits = nnx.merge(graphdef, params).rank(inputs, key=key)
        assert inputs.outcome is not None and inputs.outcome_weight is not None
        loss, parts = ranking_loss(
            logits,
            inputs.outcome,
            inputs.outcome_weight,
            is_regression=are_regressions(tasks),
            weights=weights,
        )
        by_task = {f"loss/{task}": parts["task_loss"][y] for y, task in enumerate(tasks)}
        return loss, {"loss": loss} | by_task

    def train_step(
        state: TrainState, batch: Batch | Impressions, key: PRNGKeyArray
    ) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(key, state.step)
        key_rounding = jax.random.fold_in(key, 1)

        view, inputs = tables.look_up(state, batch)
        key_dropout = key_of_rows(key, batch.row) if isinstance(batch, Batch) else key
        grads, metrics = jax.grad(loss_fn, has_aux=True)(view.params, inputs, key_dropout)
        state = tables.apply(state, view, grads, key_rounding)
        return state, metrics

    return train_step
