"""Vectors of items that have several rows of a table, or share them: the map from items to rows comes from outside.

What reads an item table then gets the vectors of the catalogue in its place, row = item id, and need not know.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from gr_jax.models.lookup import AXES, ambient_devices


def item_vectors(table: Float[Array, "rows D"], row: Int[Array, "*T k"]) -> Float[Array, "*T D"]:
    """Sum of the rows of each item / sqrt(how many they are), in float32; a row number 0 is none.

    So an item of several rows starts as large as one of one row, which it has as it is.
    """
    real = row != 0
    total = jnp.zeros((*row.shape[:-1], table.shape[-1]), jnp.float32)
    for i in range(
        row.shape[-1]
    ):  # one after the other: k times less memory than a sum over a gather of all
        total += jnp.where(real[..., i, None], table[row[..., i]].astype(jnp.float32), 0)
    return total / jnp.sqrt(jnp.maximum(real.sum(-1), 1).astype(jnp.float32))[..., None]


def catalogue_table(table: Float[Array, "rows D"], row: Int[Array, "X1 k"]) -> Float[Array, "X1 D"]:
    """`item_vectors` of the whole catalogue; on a mesh the items lie over all devices, as the rows of the table do.

    Each device then hears the whole table for a moment, which is the smaller of the two, and makes its items' vectors.
    """
    devices = ambient_devices()
    count = devices["data"] * devices["model"] if devices else 1
    if count == 1 or len(table) % count or len(row) % count:
        return item_vectors(table, row)

    def per_device(table: Float[Array, "rows D"], row: Int[Array, "X1 k"]) -> Float[Array, "X1 D"]:
        return item_vectors(jax.lax.all_gather(table, AXES, tiled=True), row)

    over_all = PartitionSpec(AXES)
    return jax.shard_map(per_device, in_specs=(over_all, over_all), out_specs=over_all)(table, row)
