"""One training step of retrieval as a pure function of (state, batch, key)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gr_jax.config import Config
from gr_jax.data.batches.batch import Batch
from gr_jax.models.noise import Key, key_of_rows, split
from gr_jax.training.retrieval.losses import next_item_loss
from gr_jax.training.retrieval.negatives import draw_negatives
from gr_jax.training.state import TrainState
from gr_jax.training.tables.rowwise import Optimizer
from gr_jax.training.tables.update import make_tables


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RetrievalInputs(Batch):
    """A batch, and what its loss takes from the catalogue; None where the loss uses none."""

    negatives: Int[Array, "R G K"] | None = None  # item ids
    item_log_q: Float[Array, "*S rows"] | None = None  # of each item: log probability of a draw


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: Optimizer,
    config: Config,
    *,
    num_items: int,
    item_log_q: Float[Array, " rows"] | None,
) -> Callable[[TrainState, Batch, PRNGKeyArray], tuple[TrainState, dict]]:
    """`train_step(state, batch, key) -> (state, metrics)`, to be jitted with the state donated.

    Dropout and negatives of a step depend on (key, state.step) alone, so a resumed run repeats
    them.

    Metrics: `loss`, the mean over labels in nats. A norm of the gradients would be one more pass
    over the item table.
    """
    tables = make_tables(optimizer, config.mesh.exchange)

    def loss_fn(params: dict, inputs: RetrievalInputs, key: Key) -> tuple[Array, dict]:
        model = nnx.merge(graphdef, params)
        hidden = model.encode(inputs, key=key)
        assert inputs.label is not None
        loss = next_item_loss(
            hidden,
            model.embeddings.item_table[...],
            inputs.label,
            label_weights(inputs.label),
            inputs.negatives,
            config=config.loss,
            num_items=num_items,
            temperature=config.model.temperature,
            item_log_q=inputs.item_log_q,
        )
        return loss, {"loss": loss}

    def train_step(state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(key, state.step)
        key_dropout, key_negatives = split(key_of_rows(key, batch.row), 2)
        key_rounding = jax.random.fold_in(key, 1)

        assert batch.label is not None
        negatives = draw_negatives(
            key_negatives,
            batch.label,
            label_weights(batch.label),
            config=config.loss,
            num_items=num_items,
        )
        inputs = RetrievalInputs(**vars(batch), negatives=negatives, item_log_q=item_log_q)

        view, inputs = tables.look_up(state, inputs)
        grads, metrics = jax.grad(loss_fn, has_aux=True)(view.params, inputs, key_dropout)
        state = tables.apply(state, view, grads, key_rounding)
        return state, metrics

    return train_step


def label_weights(label: Int[Array, "R L"]) -> Float[Array, "R L"]:
    """1 where there is a label, else 0."""
    return (label != 0).astype(jnp.float32)
