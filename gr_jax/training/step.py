"""One training step as a pure function of (state, batch, key)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from gr_jax.config import Config
from gr_jax.data.batch import Batch
from gr_jax.training.losses import next_item_loss
from gr_jax.training.state import TrainState


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    config: Config,
    *,
    num_items: int,
    item_log_q: Float[Array, " rows"] | None,
) -> Callable[[TrainState, Batch, PRNGKeyArray], tuple[TrainState, dict]]:
    """`train_step(state, batch, key) -> (state, metrics)`, to be jitted with the state donated.

    Dropout and negatives of a step depend on (key, state.step) alone, so a resumed run repeats them.

    Metrics: `loss`, the mean over labels in nats. A norm of the gradients would be one more pass over the item table.
    """

    def train_step(state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[TrainState, dict]:
        key_dropout, key_negatives = jax.random.split(jax.random.fold_in(key, state.step))

        def loss_of(params: dict) -> Float[Array, ""]:
            model = nnx.merge(graphdef, params)
            hidden = model.encode(batch, key=key_dropout)
            assert batch.label is not None
            weights = (batch.label != 0).astype(jnp.float32)
            loss, _ = next_item_loss(
                hidden,
                model.embeddings.item_table[...],
                batch.label,
                weights,
                key_negatives,
                config=config.loss,
                num_items=num_items,
                temperature=config.model.temperature,
                item_log_q=item_log_q,
            )
            return loss

        loss, grads = jax.value_and_grad(loss_of)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), {"loss": loss}

    return train_step
