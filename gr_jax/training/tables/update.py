"""The entries that a batch needs, looked up before the loss, and their update after it.

A training step is three lines, whatever its loss and its optimizer:

    view, inputs = tables.look_up(state, inputs)
    grads, metrics = jax.grad(loss_fn, has_aux=True)(view.params, inputs, key)
    state = tables.apply(state, view, grads, key)

With a dense optimizer the first is the identity and the last is optax. With a row-wise one the
model sees tables of the batch's entries alone, and only these change. With a vocabulary the item
table of the view has the vectors of items, whatever entries they are made of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from gr_jax.training.state import TrainState
from gr_jax.training.tables.admission import (
    Vocabulary,
    catalogue_params,
    count_items,
    entries_of_items,
    vectors_of_items,
)
from gr_jax.training.tables.batch_entries import Inputs, renumber
from gr_jax.training.tables.exchange import batch_parts, deliver, fetch
from gr_jax.training.tables.rowwise import (
    Optimizer,
    RowwiseOptimizer,
    join_tables,
    split_tables,
)


class View(NamedTuple):
    """The parameters as the model reads them for one batch."""

    params: dict
    entries: dict[str, Int[Array, "*S U"]]  # read of each table, ascending; {} = tables are whole
    # gradients of `params` -> a tuple, of the arrays of the state that `params` were made of
    pull: Callable[[dict], tuple]
    vocabulary: Vocabulary | None  # of the next step: the items of the batch are counted


class DenseTables(NamedTuple):
    """Tables that are read and updated whole, as all other parameters."""

    optimizer: optax.GradientTransformation

    def look_up(self, state: TrainState, inputs: Inputs) -> tuple[View, Inputs]:
        """The parameters, and `inputs` as they are."""
        params, pull = jax.vjp(lambda p: catalogue_params(p, state.vocabulary), state.params)
        vocabulary = count_items(state.vocabulary, inputs, state.step)
        return View(params, {}, pull, vocabulary), inputs

    def apply(self, state: TrainState, view: View, grads: dict, key: PRNGKeyArray) -> TrainState:
        """The state after a step with these gradients of `view.params`; `key` is not used."""
        del key
        (grads,) = view.pull(grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, view.vocabulary)


class RowwiseTables(NamedTuple):
    """Tables of which a step reads and updates only the entries that its batch names."""

    optimizer: RowwiseOptimizer
    exchange: str  # how entries travel over a mesh, see `tables.exchange`

    def look_up(self, state: TrainState, inputs: Inputs) -> tuple[View, Inputs]:
        """The parameters with the batch's entries for tables, and `inputs` that index these.

        Entries are in float32, whatever the dtype of the table.
        """
        vocabulary = state.vocabulary
        tables, rest = split_tables(state.params)
        sizes = {name: len(table) for name, table in tables.items()}
        if vocabulary is not None:
            sizes["item_table"] = len(vocabulary["rows"])
        entries, numbered = renumber(inputs, sizes, parts=batch_parts())

        # With a vocabulary the ids are those of items, and an item's vector is a sum of entries.
        place = None
        if vocabulary is not None:
            entries["item_table"], place = entries_of_items(
                vocabulary, entries["item_table"], len(tables["item_table"])
            )

        found = {
            name: fetch(table, entries[name], exchange=self.exchange).astype(jnp.float32)
            for name, table in tables.items()
        }

        def params_of(rest: dict, found: dict) -> dict:
            if place is not None:
                found = found | {"item_table": vectors_of_items(found["item_table"], place)}
            return join_tables(found, rest)

        params, pull = jax.vjp(params_of, rest, found)
        return View(params, entries, pull, count_items(vocabulary, inputs, state.step)), numbered

    def apply(self, state: TrainState, view: View, grads: dict, key: PRNGKeyArray) -> TrainState:
        """The state after a step with these gradients of `view.params`.

        key: of the rounding of bfloat16 tables.
        """
        tables, rest = split_tables(state.params)
        rest_grads, table_grads = view.pull(grads)
        updates, rest_state = self.optimizer.rest.update(rest_grads, state.opt_state["rest"], rest)
        rest: Any = optax.apply_updates(rest, updates)

        new_tables, new_moments = {}, {}
        for number, (name, table) in enumerate(tables.items()):
            new_tables[name], new_moments[name] = deliver(
                self.optimizer.update_of(state.step, jax.random.fold_in(key, number)),
                table,
                state.opt_state["tables"][name],
                view.entries[name],
                table_grads[name],
                exchange=self.exchange,
            )
        opt_state = {"tables": new_moments, "rest": rest_state}
        return TrainState(state.step + 1, join_tables(new_tables, rest), opt_state, view.vocabulary)


def make_tables(optimizer: Optimizer, exchange: str) -> DenseTables | RowwiseTables:
    """The look-up and the update that `optimizer` asks for."""
    if isinstance(optimizer, RowwiseOptimizer):
        return RowwiseTables(optimizer, exchange)
    return DenseTables(optimizer)
