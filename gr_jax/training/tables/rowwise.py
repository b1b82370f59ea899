"""Row-wise optimizers of embedding tables: a step changes only the entries that it looks up.

A dense optimizer reads and writes every entry in every step, three arrays as large as the table and
its gradient, although only a few thousand entries have a gradient. Here an entry that no token of
the batch names stays as it is to the last bit, and so do its moments: they decay in the steps that
name it (as in torch's SparseAdam), which are also those that apply its weight decay. The second
moment is one number an entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gr_jax.config import OptimizerConfig

TABLES = ("item_table", "feature_table")  # parameters of `embeddings` that are looked up by id


class RowRule(NamedTuple):
    """How an entry follows its gradient; moments are arrays with a value for each entry."""

    init: Callable[[Float[Array, "rows D"]], dict]  # table -> moments at step 0
    # (gradients, moments, steps so far) -> step, moments
    direction: Callable[..., tuple[Float[Array, "U D"], dict]]


def rowwise_adamw(config: OptimizerConfig) -> RowRule:
    """AdamW with the mean square of the gradient over an entry in place of each element's square.

    m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) mean(g^2);
    step = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), t being the steps of the run and not
    those of the entry. Source: paper, section 3.3, which does not print the rule.
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
    """v <- v + mean(g^2) over the entry; step = g / (sqrt(v) + eps).

    Four bytes of state an entry (FBGEMM's rule).
    """

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
    weight_decay: float  # of an entry in each step that names it

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
        """`update(table, moments, entry, gradient, first) -> table, moments`: one step.

        entry: strictly ascending; numbers beyond the table are left out. first: number of the first
        entry of `table` in the whole table, whose entry 0 is padding and stays.

        Args:
          count: steps taken before this one.
          key: of the rounding of a bfloat16 table.
        """
        rate = self.rate(count) if callable(self.rate) else self.rate

        def update(
            table: Array, moments: dict, entry: Array, gradient: Array, first: Array | int
        ) -> tuple[Array, dict]:
            before = table.at[entry].get(mode="fill", fill_value=0).astype(jnp.float32)
            held = {name: a.at[entry].get(mode="fill", fill_value=0) for name, a in moments.items()}
            step, new = self.rule.direction(gradient, held, count)
            after = before - rate * (step + self.weight_decay * before)

            stays = entry + first == 0
            after = jnp.where(stays[:, None], before, after)
            new = {
                name: jnp.where(stays.reshape(-1, *[1] * (a.ndim - 1)), held[name], a)
                for name, a in new.items()
            }
            if table.dtype == jnp.bfloat16:
                after = stochastically_rounded(after, entry + first, key)
            new_moments = {name: _put(a, entry, new[name]) for name, a in moments.items()}
            return _put(table, entry, after), new_moments

        return update


Optimizer = optax.GradientTransformation | RowwiseOptimizer


def _put(array: Array, entry: Int[Array, " U"], values: Array) -> Array:
    return array.at[entry].set(values, mode="drop", unique_indices=True, indices_are_sorted=True)


def stochastically_rounded(
    x: Float[Array, "U D"], entry: Int[Array, " U"], key: PRNGKeyArray
) -> Float[Array, "U D"]:
    """Round float32 to one of the two bfloat16 neighbours, so that the mean is exact.

    Steps below half a unit in the last place would be lost in rounding to the nearest. The draw
    depends on the number of the entry and not on the device that has it. Finite x only.
    """

    def draw(entry: Int[Array, ""]) -> Array:
        return jax.random.bits(jax.random.fold_in(key, entry), x.shape[1:], jnp.uint16)

    noise = jax.vmap(draw)(entry)
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


def join_tables(tables: dict, rest: dict) -> dict:
    """The inverse of `split_tables`."""
    return rest | {"embeddings": rest["embeddings"] | tables}


def cast_tables(params: dict, dtype: str) -> dict:
    """The parameters with tables in `dtype`."""
    tables, rest = split_tables(params)
    return join_tables({name: table.astype(dtype) for name, table in tables.items()}, rest)
