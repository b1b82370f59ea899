"""Row-wise optimizers of embedding tables: only rows that a step looks up change, with one second moment per row.

A dense optimizer reads and writes every row in every step, three arrays as large as the table and its gradient, for the
sake of a few thousand rows that have one. Here a row that no token of the batch names stays as it is to the last bit,
and so do its moments: they decay in the steps that touch it (as in torch's SparseAdam), and so does its weight decay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gr_jax.config import OptimizerConfig

TABLES = ("item_table", "feature_table")  # parameters of `embeddings` that are looked up by id


class RowRule(NamedTuple):
    """How a row follows its gradient; the moments of a table are a dict of arrays with one entry for each row."""

    init: Callable[[Float[Array, "rows D"]], dict]  # table -> moments at step 0
    # (gradients, moments, steps so far) -> step, moments
    direction: Callable[..., tuple[Float[Array, "U D"], dict]]


def rowwise_adamw(config: OptimizerConfig) -> RowRule:
    """AdamW with the mean square of the gradient over a row in place of each element's square.

    m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) mean(g^2); step = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), t
    being the steps of the run and not those of the row. Source: paper, section 3.3, which does not print the rule.
    """

    def init(table: Float[Array, "rows D"]) -> dict:
        return {"mu": jnp.zeros(table.shape, jnp.float32), "nu": jnp.zeros(len(table), jnp.float32)}

    def direction(
        gradient: Float[Array, "U D"], moments: dict, count: Int[Array, ""]
    ) -> tuple[Array, dict]:
        mu = config.b1 * moments["mu"] + (1 - config.b1) * gradient
        nu = config.b2 * moments["nu"] + (1 - config.b2) * jnp.square(gradient).mean(-1)
        unbiased = nu / (1 - config.b2 ** (count + 1))
        step = mu / (1 - config.b1 ** (count + 1)) / (jnp.sqrt(unbiased) + config.eps)[:, None]
        return step, {"mu": mu, "nu": nu}

    return RowRule(init, direction)


def rowwise_adagrad(config: OptimizerConfig) -> RowRule:
    """v <- v + mean(g^2) over the row; step = g / (sqrt(v) + eps): four bytes of state a row (FBGEMM's rule)."""

    def init(table: Float[Array, "rows D"]) -> dict:
        return {"nu": jnp.zeros(len(table), jnp.float32)}

    def direction(
        gradient: Float[Array, "U D"], moments: dict, count: Int[Array, ""]
    ) -> tuple[Array, dict]:
        nu = moments["nu"] + jnp.square(gradient).mean(-1)
        return gradient / (jnp.sqrt(nu) + config.eps)[:, None], {"nu": nu}

    return RowRule(init, direction)


RULES = {"rowwise_adamw": rowwise_adamw, "rowwise_adagrad": rowwise_adagrad}


class RowwiseOptimizer(NamedTuple):
    """A row-wise rule for the tables and a dense optimizer for all other parameters."""

    rest: optax.GradientTransformation
    rule: RowRule
    rate: optax.ScalarOrSchedule  # of the tables
    weight_decay: float  # of a row in each step that touches it

    def init(self, params: dict) -> dict:
        """{"tables": moments by table, "rest": state of the dense optimizer}."""
        tables, rest = split_tables(params)
        return {
            "tables": {name: self.rule.init(table) for name, table in tables.items()},
            "rest": self.rest.init(rest),
        }

    def update_of(
        self, count: Int[Array, ""], key: PRNGKeyArray
    ) -> Callable[..., tuple[Array, dict]]:
        """`update(table, moments, row, gradient, first_row) -> table, moments`: a step in the rows `row`.

        row: strictly ascending; numbers beyond the table are left out. first_row: number of the first row of `table` in
        the whole table, whose row 0 is padding and stays.

        Args:
          count: steps taken before this one.
          key: of the rounding of a bfloat16 table.
        """
        rate = self.rate(count) if callable(self.rate) else self.rate

        def update(
            table: Array, moments: dict, row: Array, gradient: Array, first_row: Array | int
        ) -> Any:
            before = table.at[row].get(mode="fill", fill_value=0).astype(jnp.float32)
            held = {name: a.at[row].get(mode="fill", fill_value=0) for name, a in moments.items()}
            step, new = self.rule.direction(gradient, held, count)
            after = before - rate * (step + self.weight_decay * before)
            stays = row + first_row == 0
            after = jnp.where(stays[:, None], before, after)
            new = {
                name: jnp.where(stays.reshape(-1, *[1] * (a.ndim - 1)), held[name], a)
                for name, a in new.items()
            }
            if table.dtype == jnp.bfloat16:
                after = stochastically_rounded(after, row + first_row, key)
            return _put(table, row, after), {
                name: _put(a, row, new[name]) for name, a in moments.items()
            }

        return update


Optimizer = optax.GradientTransformation | RowwiseOptimizer


def _put(array: Array, row: Int[Array, " U"], values: Array) -> Array:
    return array.at[row].set(values, mode="drop", unique_indices=True, indices_are_sorted=True)


def stochastically_rounded(
    x: Float[Array, "U D"], row: Int[Array, " U"], key: PRNGKeyArray
) -> Float[Array, "U D"]:
    """float32 -> one of the two bfloat16 neighbours, with the probabilities that make the mean exact.

    Steps below half a unit in the last place would be lost in rounding to the nearest. The draw depends on the number
    of the row, `row`, and not on the device that has it. Finite x only.
    """

    def draw(row: Int[Array, ""]) -> Array:
        return jax.random.bits(jax.random.fold_in(key, row), x.shape[1:], jnp.uint16)

    noise = jax.vmap(draw)(row)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32).astype(
        jnp.bfloat16
    )


def split_tables(params: dict) -> tuple[dict, dict]:
    """The tables by name, and the parameters without them."""
    embeddings = params["embeddings"]
    tables = {name: embeddings[name] for name in TABLES if name in embeddings}
    rest = {name: value for name, value in embeddings.items() if name not in tables}
    return tables, params | {"embeddings": rest}


def join_tables(tables: dict, rest: dict) -> Any:
    """Undoes `split_tables`."""
    return rest | {"embeddings": rest["embeddings"] | tables}


def cast_tables(params: dict, dtype: str) -> dict:
    """The parameters with tables in `dtype`."""
    tables, rest = split_tables(params)
    return join_tables({name: table.astype(dtype) for name, table in tables.items()}, rest)
