"""One training step as a pure function of (state, batch, key)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from gr_jax.config import Config
from gr_jax.data.batches.batch import Batch
from gr_jax.training.optimizer import Optimizer
from gr_jax.training.retrieval.losses import draw_negatives, next_item_loss
from gr_jax.training.state import TrainState
from gr_jax.training.tables.update import descend


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: Optimizer,
    config: Config,
    *,
    num_items: int,
    item_log_q: Float[Array, " rows"] | None,
) -> Callable[[TrainState, Batch, PRNGKeyArray], tuple[TrainState, dict]]:
    """`train_step(state, batch, key) -> (state, metrics)`, to be jitted with the state donated.

    Dropout and negatives of a step depend on (key, state.step) alone, so a resumed run repeats them.

    Metrics: `loss`, the mean over labels in nats. A norm of the gradients would be one more pass over the item table.
    """

    def objective(
        params: dict, batch: Batch, negatives: Any, log_q: Any, *, key: PRNGKeyArray
    ) -> Any:
        model = nnx.merge(graphdef, params)
        hidden = model.encode(batch, key=key)
        assert batch.label is not None
        loss = next_item_loss(
            hidden,
            model.embeddings.item_table[...],
            batch.label,
            _weights(batch),
            negatives,
            config=config.loss,
            num_items=num_items,
            temperature=config.model.temperature,
            item_log_q=log_q,
        )
        return loss, {}

    def train_step(state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(key, state.step)
        key_dropout, key_negatives = jax.random.split(key)
        assert batch.label is not None
        negatives = draw_negatives(
            key_negatives, batch.label, _weights(batch), config=config.loss, num_items=num_items
        )
        return descend(
            functools.partial(objective, key=key_dropout),
            optimizer,
            state,
            batch,
            jax.random.fold_in(key, 1),
            exchange=config.mesh.exchange,
            negatives=negatives,
            item_log_q=item_log_q,
        )

    return train_step


def _weights(batch: Batch) -> Float[Array, "R L"]:
    return (batch.label != 0).astype(jnp.float32)
