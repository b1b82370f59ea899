"""One optimizer step down an objective: over all parameters, or over those rows of the tables that a batch touches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gr_jax.data.batches.batch import Batch, Impressions
from gr_jax.training.optimizer import Optimizer
from gr_jax.training.state import TrainState
from gr_jax.training.tables.admission import (
    catalogue_params,
    observed,
    touched_rows,
    vectors_of_touched,
)
from gr_jax.training.tables.batch_entries import touched
from gr_jax.training.tables.exchange import batch_parts, deliver, fetch
from gr_jax.training.tables.rowwise import SparseOptimizer, join_tables, split_tables

# (params, batch, negatives, item_log_q) -> loss, metrics
Objective = Callable[[dict, Any, Array | None, Array | None], tuple[Float[Array, ""], dict]]


def descend(
    objective: Objective,
    optimizer: Optimizer,
    state: TrainState,
    batch: Batch | Impressions,
    key: PRNGKeyArray,
    *,
    exchange: str,
    negatives: Int[Array, "R G K"] | None = None,
    item_log_q: Float[Array, " rows"] | None = None,
) -> tuple[TrainState, dict]:
    """The state after one step, and the metrics of `objective` with its value as `loss`.

    With a `SparseOptimizer` the objective gets tables of the touched rows alone, ids being numbers of these. With a
    vocabulary in the state its item table has the vectors of items, whatever rows they are made of.

    Args:
      key: of the rounding of bfloat16 tables.
      exchange: how rows travel over a mesh, see `row_exchange`.
      negatives: item ids; item_log_q: a number for each item id; None where the objective uses none.
    """
    if isinstance(optimizer, SparseOptimizer):
        return _descend_rows(
            objective, optimizer, state, batch, key, exchange, negatives, item_log_q
        )

    def loss_of(params: dict) -> tuple[Float[Array, ""], dict]:
        return objective(catalogue_params(params, state.vocabulary), batch, negatives, item_log_q)

    (loss, values), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    return TrainState(
        state.step + 1, params, opt_state, observed(state.vocabulary, batch, state.step)
    ), {"loss": loss} | values


def _descend_rows(
    objective: Objective,
    optimizer: SparseOptimizer,
    state: TrainState,
    batch: Batch | Impressions,
    key: PRNGKeyArray,
    exchange: str,
    negatives: Int[Array, "R G K"] | None,
    item_log_q: Float[Array, " rows"] | None,
) -> tuple[TrainState, dict]:
    tables, rest = split_tables(state.params)
    moments, rest_state = state.opt_state["tables"], state.opt_state["rest"]
    sizes = {name: len(table) for name, table in tables.items()}
    if state.vocabulary is not None:
        sizes["item_table"] = len(state.vocabulary["rows"])
    small = touched(batch, negatives, sizes, parts=batch_parts())
    rows, place = small.rows, None
    if state.vocabulary is not None:
        own, place = touched_rows(
            state.vocabulary, small.rows["item_table"], len(tables["item_table"])
        )
        rows = rows | {"item_table": own}
    looked_up = {
        name: fetch(table, rows[name], exchange=exchange).astype(jnp.float32)
        for name, table in tables.items()
    }
    if item_log_q is not None:
        item_log_q = item_log_q.at[small.rows["item_table"]].get(mode="clip")
        item_log_q = item_log_q if looked_up["item_table"].ndim == 3 else item_log_q[0]

    def loss_of(rest: dict, looked_up: dict) -> tuple[Float[Array, ""], dict]:
        if place is not None:
            looked_up = looked_up | {
                "item_table": vectors_of_touched(looked_up["item_table"], place)
            }
        return objective(join_tables(looked_up, rest), small.batch, small.negatives, item_log_q)

    (loss, values), (grads, gradients) = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(
        rest, looked_up
    )
    updates, rest_state = optimizer.rest.update(grads, rest_state, rest)
    rest: Any = optax.apply_updates(rest, updates)
    new_tables, new_moments = {}, {}
    for number, (name, table) in enumerate(tables.items()):
        update = optimizer.update_of(state.step, jax.random.fold_in(key, number))
        new_tables[name], new_moments[name] = deliver(
            update, table, moments[name], rows[name], gradients[name], exchange=exchange
        )
    params = join_tables(new_tables, rest)
    opt_state = {"tables": new_moments, "rest": rest_state}
    return TrainState(
        state.step + 1, params, opt_state, observed(state.vocabulary, batch, state.step)
    ), {"loss": loss} | values
