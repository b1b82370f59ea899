"""Vectors of items that share the entries of a table; the map from items to entries is an argument.

What reads an item table then gets the vectors of the catalogue in its place, indexed by item id.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from gr_jax.models.lookup import AXES, ambient_devices


def item_vectors(table: Float[Array, "rows D"], entry: Int[Array, "*T k"]) -> Float[Array, "*T D"]:
    """Sum of the entries of each item / sqrt(their number), in float32; entry 0 is none.

    So an item of several entries starts as large as one of a single entry, whose vector is that
    entry unchanged.
    """
    real = entry != 0
    total = jnp.zeros((*entry.shape[:-1], table.shape[-1]), jnp.float32)
    # One after the other: k times less memory than a sum over a gather of all.
    for i in range(entry.shape[-1]):
        total += jnp.where(real[..., i, None], table[entry[..., i]].astype(jnp.float32), 0)
    return total / jnp.sqrt(jnp.maximum(real.sum(-1), 1).astype(jnp.float32))[..., None]


def catalogue_table(
    table: Float[Array, "rows D"], entry: Int[Array, "X1 k"]
) -> Float[Array, "X1 D"]:
    """`item_vectors` of the whole catalogue; on a mesh items lie over all devices, as the table.

    Each device then gathers the whole table for a moment, which is the smaller of the two, and
    makes the vectors of its items.
    """
    devices = ambient_devices()
    count = devices["data"] * devices["model"] if devices else 1
    if count == 1 or len(table) % count or len(entry) % count:
        return item_vectors(table, entry)

    def per_device(
        table: Float[Array, "rows D"], entry: Int[Array, "X1 k"]
    ) -> Float[Array, "X1 D"]:
        return item_vectors(jax.lax.all_gather(table, AXES, tiled=True), entry)

    over_all = PartitionSpec(AXES)
    return jax.shard_map(per_device, in_specs=(over_all, over_all), out_specs=over_all)(
        table, entry
    )
