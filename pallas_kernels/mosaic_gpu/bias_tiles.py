"""The bias of all pairs near the diagonal, as 16-bit tiles for kernels that cannot gather.

One list serves all heads. Pairs further apart than max_length are of different sequences, so the
list holds the tiles near the diagonal only, and it is one row of tiles where the bias depends on
i - j alone.

Letters: R rows (1 where all rows have the same bias), L tokens in a row, B = L / 128 blocks,
T tiles of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Int, Shaped

from pallas_kernels.arguments import Bias
from pallas_kernels.masks import time_bucket
from pallas_kernels.visible_keys import VisibleKeys

BIAS_TILE = 128  # queries and keys of a tile; kernels read parts of it


class BiasTiles(NamedTuple):
    """Half the bias (what tanh needs) of 128 queries by 128 keys.

    Tile `lookup[q, 0] + lookup[q, 1] * k` is that of query block q and key block k.
    """

    tiles: Shaped[Array, "R T 128 128"]
    lookup: Int[Array, "B 2"]


def near_blocks(length: int, max_length: int) -> list[tuple[int, int]]:
    """The (query block, key block) pairs, ordered, that can hold a visible pair."""
    reach = -(-(max_length - 1) // BIAS_TILE)
    return [(q, k) for q in range(length // BIAS_TILE) for k in range(max(0, q - reach), q + 1)]


def bias_tiles(visible: VisibleKeys, bias: Bias, max_length: int, dtype) -> BiasTiles | None:
    """The tiles of half the bias, in `dtype`, or None without tables; L is a multiple of 128."""
    position_table, time_table, query_times, key_times = bias
    if position_table is None and time_table is None:
        return None
    length = visible.first.shape[1]
    toeplitz = time_table is None and visible.position is None
    pairs = near_blocks(length, max_length)
    if toeplitz:
        pairs = [(q, 0) for q in sorted({q - k for q, k in pairs})]
        lookup = [(q, -1) for q in range(length // BIAS_TILE)]
    else:
        lookup = [(pairs.index((q, q)) - q, 1) for q in range(length // BIAS_TILE)]
    query, key = (jnp.array(side, jnp.int32) for side in zip(*pairs, strict=True))

    def differences(
        queries: Int[Array, "R L"], keys: Int[Array, "R L"]
    ) -> Int[Array, "R T 128 128"]:
        in_blocks = lambda x: x.reshape(x.shape[0], -1, BIAS_TILE)
        return in_blocks(queries)[:, query, :, None] - in_blocks(keys)[:, key, None, :]

    total = jnp.zeros((), jnp.float32)
    if position_table is not None:
        position = jnp.arange(length)[None] if visible.position is None else visible.position
        distance = jnp.clip(differences(position, position), 0, len(position_table) - 1)
        total = total + position_table.astype(jnp.float32)[distance]
    if time_table is not None:
        assert query_times is not None and key_times is not None
        bucket = jnp.minimum(time_bucket(differences(query_times, key_times)), len(time_table) - 1)
        total = total + time_table.astype(jnp.float32)[bucket]
    return BiasTiles((0.5 * total).astype(dtype), jnp.array(np.array(lookup, np.int32)))


def bias_part(bias_gmem, row, query, key, query_size: int, key_size: int):
    """The part of the tiles with the queries and keys from these row indices on, inside a kernel.

    bias_gmem: the leaves of `BiasTiles` in global memory.
    """
    tiles_gmem, lookup_gmem = bias_gmem
    q, k = jax.lax.div(query, BIAS_TILE), jax.lax.div(key, BIAS_TILE)
    tile = lookup_gmem[q, 0] + lookup_gmem[q, 1] * k
    row = 0 if tiles_gmem.shape[0] == 1 else row
    queries = pl.ds(jax.lax.rem(query, BIAS_TILE), query_size)
    return tiles_gmem.at[row, tile, queries, pl.ds(jax.lax.rem(key, BIAS_TILE), key_size)]
