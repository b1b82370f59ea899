"""Entries of an embedding table by id: a take on one device, a collective over tokens on a mesh.

Under `jax.set_mesh` with axes `data` and `model` the entries of a table are taken to lie over both,
and the first axis of ids over `data`. Left alone, the partitioner would make the vectors of all
tokens on all devices; here each device gathers the ids, takes the entries that it has and hands the
vectors to the devices that asked (`reduce-scatter`). Nothing as large as the table moves, forward
or backward, and no token is ever dropped.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from gr_jax.models.layers import widen

AXES = ("data", "model")  # entries of a table are over both, rows of a batch over the first


def ambient_devices() -> dict[str, int]:
    """Devices along each of `AXES` in the ambient mesh.

    {} without one, on one device and inside a shard_map.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if any(types.get(axis) != AxisType.Auto for axis in AXES) or mesh.size == 1:
        return {}
    return {axis: mesh.shape[axis] for axis in AXES}


def take_entries(table: Float[Array, "*S rows D"], ids: Int[Array, "*T"]) -> Float[Array, "*T D"]:
    """`table[ids]` in float32 or wider.

    Args:
      table: [rows, D]; or [S, rows, D], one table for each of S equal parts of the first axis of
        ids.
      ids: at least 0 and below rows.
    """
    if table.ndim == 3:
        taken = jax.vmap(lambda table, ids: table[ids])(table, _parts(ids, len(table)))
        return widen(taken.reshape(*ids.shape, -1))

    devices = ambient_devices()
    # A handful of ids, such as those of one request, need not divide by the mesh; neither need a
    # table made by hand.
    if (
        not devices
        or ids.shape[0] % devices["data"]
        or table.shape[0] % (devices["data"] * devices["model"])
    ):
        return widen(table[ids])

    split = PartitionSpec("data")
    taken = jax.shard_map(_take_sharded, in_specs=(PartitionSpec(AXES), split), out_specs=split)(
        table, ids
    )
    return widen(taken)


def add_entries(
    table: Float[Array, "*S rows D"], ids: Int[Array, "*T"], values: Float[Array, "*T D"]
) -> Float[Array, "*S rows D"]:
    """`table` with `values` added at `ids`; a repeated id adds each time it occurs.

    Arguments as of `take_entries`.
    """
    if table.ndim == 2:
        return table.at[ids].add(values)
    parts = len(table)
    add = jax.vmap(lambda table, ids, values: table.at[ids].add(values))
    return add(table, _parts(ids, parts), _parts(values, parts))


def _parts(x: Array, count: int) -> Array:
    return x.reshape(count, x.shape[0] // count, *x.shape[1:])


def _take_sharded(table: Float[Array, "rows D"], ids: Int[Array, "*T"]) -> Float[Array, "*T D"]:
    """The entries that this device's ids ask for; both arguments are its own shards."""
    everyone = jax.lax.all_gather(ids, "data", tiled=True)
    return jax.lax.psum(
        jax.lax.psum_scatter(own_entries(table, everyone), "data", scatter_dimension=0, tiled=True),
        "model",
    )


def own_entries(table: Float[Array, "rows D"], ids: Int[Array, "*T"]) -> Float[Array, "*T D"]:
    """Entries of the ids that lie in this device's shard of the table, zeros for the others."""
    local = ids - jax.lax.axis_index(AXES) * len(table)
    mine = (local >= 0) & (local < len(table))
    taken = table.at[jnp.clip(local, 0, len(table) - 1)].get(mode="promise_in_bounds")
    return jnp.where(mine[..., None], taken, 0)
