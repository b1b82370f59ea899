"""Items, actions, feature values and positions -> input vectors: one table each, summed."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.packing import padded
from gr_jax.models.layers import dropout, widen
from gr_jax.models.lookup import take_entries
from gr_jax.models.noise import Key
from gr_jax.models.sizes import ModelSizes

# Entries of a table are a multiple of this, and of the devices that share them: so most meshes have
# tables of one size. A checkpoint of another size is cut or filled up when it is read.
ENTRY_MULTIPLE = 128


def table_entries(num_ids: int, devices: int = 1) -> int:
    """Entries of a table that devices share evenly: ids 0 (padding) to num_ids, and unused ones.

    >>> [table_entries(300, devices) for devices in (1, 8, 3)]
    [384, 384, 384]
    >>> [table_entries(400, devices) for devices in (1, 8, 3)]
    [512, 512, 768]
    """
    return padded(num_ids + 1, math.lcm(ENTRY_MULTIPLE, devices))


class ContentEmbeddings(nnx.Module):
    """Vector of a token: E[item] * sqrt(D) + values of item and user features + bits of the action.

    Attributes:
      item_table: [entries, D] by item id; also the output table of the retrieval head.
      feature_table: [entries, D] by feature value id; None without features.
        In a sparse training step both hold the entries of the batch alone, and ids count these
        (`training.tables`); over several devices [S, entries, D], see `lookup.take_entries`. Where
        items share entries, the model gets a table of their vectors, by item id again
        (`models.vocabulary`).
      action_table: [actions + 1, D]; entry 0 = the token holds an action, entry 1 + i = it was
        action i; None without actions.
    """

    def __init__(self, sizes: ModelSizes, width: int, *, rngs: nnx.Rngs):
        entries = functools.partial(table_entries, devices=sizes.devices)
        item_init = jax.nn.initializers.truncated_normal(0.02)
        # as large as a scaled item
        other_init = jax.nn.initializers.truncated_normal(0.02 * math.sqrt(width))
        self.item_table = nnx.Param(item_init(rngs.params(), (entries(sizes.num_items), width)))
        values, actions = sizes.num_feature_values, sizes.num_actions
        table = lambda entries: nnx.Param(other_init(rngs.params(), (entries, width)))
        self.feature_table = table(entries(values)) if values else None
        self.action_table = table(actions + 1) if actions else None

    def content(
        self,
        item: Int[Array, "*T"],
        *,
        item_features: Int[Array, "*T F"] | None = None,
        user_feature: Int[Array, "*T"] | None = None,
        action: Int[Array, "*T"] | None = None,
    ) -> Float[Array, "*T D"]:
        """Sum of the vectors of all that a token holds; ids as in `Batch`, where 0 adds nothing.

        With `item` and `item_features` alone every token is an item or padding, and the vector of
        padding is arbitrary.

        Raises:
          ValueError: features or actions for a model that was made without them.
        """
        x = take_entries(self.item_table[...], item) * math.sqrt(self.item_table.shape[-1])
        if user_feature is not None or action is not None:
            x = jnp.where(item[..., None] != 0, x, 0)
        if item_features is not None:
            x += self.of_values(item_features).sum(-2)
        if user_feature is not None:
            x += self.of_values(user_feature)
        if action is not None:
            x += self.of_actions(action)
        return x

    def of_actions(self, action: Int[Array, "*T"]) -> Float[Array, "*T D"]:
        """Sum of the vectors of the bits of `Batch.action`.

        Raises:
          ValueError: a model that was made without actions.
        """
        if self.action_table is None:
            raise ValueError("the batch holds actions, but the model was made with num_actions=0")
        bits = action[..., None] >> jnp.arange(len(self.action_table)) & 1
        return bits.astype(self.action_table.dtype) @ self.action_table[...]

    def items(self, item_features: Int[Array, "*S rows F"] | None) -> Float[Array, "*S rows D"]:
        """Vectors of all entries of the item table, with the features of each if there are any."""
        x = widen(self.item_table[...]) * math.sqrt(self.item_table.shape[-1])
        return x if item_features is None else x + self.of_values(item_features).sum(-2)

    def of_values(self, value: Int[Array, "*T"]) -> Float[Array, "*T D"]:
        """Vectors of feature values; 0 gives zeros.

        Raises:
          ValueError: a model that was made without features.
        """
        if self.feature_table is None:
            raise ValueError(
                "the batch holds feature values, but the model was made with num_feature_values=0"
            )
        return jnp.where(value[..., None] != 0, take_entries(self.feature_table[...], value), 0)


class InputEmbeddings(ContentEmbeddings):
    """x = dropout(content + P[position]), 0 at padding (Zhai et al. 2024, public research code).

    Attributes:
      position_table: [N, D]; entry 0 is the oldest token of a sequence.
    """

    def __init__(
        self, sizes: ModelSizes, width: int, *, position_init: nnx.Initializer, rngs: nnx.Rngs
    ):
        super().__init__(sizes, width, rngs=rngs)
        self.position_table = nnx.Param(position_init(rngs.params(), (sizes.max_length, width)))

    def __call__(
        self, batch: Batch, *, rate: float, dtype: jnp.dtype, key: Key | None
    ) -> Float[Array, "R L D"]:
        """Input vectors in `dtype`; with `key`, dropout at `rate`.

        Positions above N - 1 count as N - 1.
        """
        x = self.content(
            batch.item,
            item_features=batch.item_features,
            user_feature=batch.user_feature,
            action=batch.action,
        )
        x += self.position_table[jnp.minimum(batch.position, len(self.position_table) - 1)]
        return jnp.where(batch.segment[..., None] != 0, dropout(x, rate, key), 0).astype(dtype)
