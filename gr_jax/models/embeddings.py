"""Items and positions -> input vectors."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gr_jax.models.layers import dropout

ROW_MULTIPLE = 128  # table rows are padded to this, so that the same checkpoint shards over any usual mesh


def table_rows(num_items: int) -> int:
    """Rows of the item table: ids 0 (padding) to X, rounded up for even sharding. Rows above X are never scored."""
    return -(-(num_items + 1) // ROW_MULTIPLE) * ROW_MULTIPLE


class InputEmbeddings(nnx.Module):
    """x = dropout(E[item] * sqrt(D) + P[position]), 0 at padding (Zhai et al. 2024, public research code).

    Attributes:
      item_table: [rows, D]; row = item id; also the output table of the retrieval head.
      position_table: [N, D]; row 0 is the oldest token of a sequence.
    """

    def __init__(self, num_items: int, max_length: int, width: int, *, position_init: nnx.Initializer, rngs: nnx.Rngs):
        item_init = jax.nn.initializers.truncated_normal(0.02)
        self.item_table = nnx.Param(item_init(rngs.params(), (table_rows(num_items), width)))
        self.position_table = nnx.Param(position_init(rngs.params(), (max_length, width)))

    def __call__(
        self,
        item: Int[Array, "R L"],
        position: Int[Array, "R L"],
        *,
        rate: float,
        dtype: jnp.dtype,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "R L D"]:
        """Input vectors in `dtype`, with dropout at `rate` when `key` is given."""
        scale = math.sqrt(self.item_table.shape[1])
        x = self.item_table[item] * scale + self.position_table[position]
        return jnp.where(item[..., None] != 0, dropout(x, rate, key), 0).astype(dtype)
