"""The work of the Mosaic GPU programs: the blocks that one visits, the mask and SiLU of a tile.

Letters: R rows, L tokens in a row, Q blocks of queries, W tiles of 64 queries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Int

from pallas_kernels.arguments import ArrayOrRef
from pallas_kernels.mosaic_gpu.tiles import TILE_ROWS, Static, mosaic
from pallas_kernels.visible_keys import VisibleKeys, key_block_ranges, longest_first


class Schedule(NamedTuple):
    """The work of a kernel whose program owns a block of queries.

    Attributes:
      ranges: key blocks of each query block, as in `key_block_ranges`.
      order: the programs r * Q + block, longest first.
      unmasked: per tile of 64 queries the key blocks a <= n < b of which each query sees each key.
    """

    ranges: Int[Array, "R Q 4"]
    order: Int[Array, " RQ"]
    unmasked: Int[Array, "R W 2"]


def schedule(visible: VisibleKeys, query_block: int, key_block: int) -> Schedule:
    """The schedule of blocks of these sizes, which divide L."""
    ranges = key_block_ranges(visible, query_block, key_block)
    a, b, c, d = jnp.moveaxis(ranges, -1, 0)
    in_tiles = lambda x: x.reshape(x.shape[0], -1, TILE_ROWS)
    first, end = in_tiles(visible.first).max(2), in_tiles(visible.end).min(2)
    unmasked = jnp.stack([-(-first // key_block), end // key_block], -1)
    return Schedule(ranges, longest_first(b - a + d - c), unmasked.astype(jnp.int32))


class QueryProgram(NamedTuple):
    """A program that owns a block of queries of one head.

    Attributes:
      row, block, head: of its queries.
      steps: key blocks that it visits. key_block: step -> key block.
    """

    row: ArrayOrRef
    block: ArrayOrRef
    head: ArrayOrRef
    steps: ArrayOrRef
    key_block: Callable


def query_program(work: Schedule, heads: int, blocks: int) -> QueryProgram:
    """The part of this program, inside a kernel; work: in global memory. blocks: of a row."""
    program = lax.axis_index("program")
    head, item = lax.rem(program, heads), work.order[lax.div(program, heads)]
    row, block = lax.div(item, blocks), lax.rem(item, blocks)
    a, b, c, d = (work.ranges[row, block, n] for n in range(4))
    key_block = lambda n: jnp.where(n < b - a, a + n, c - (b - a) + n)
    return QueryProgram(row, block, head, (b - a) + (d - c), key_block)


def half_of(warpgroup):
    """The rows of a block that are the warpgroup's."""
    return pl.ds(pl.multiple_of(warpgroup * TILE_ROWS, 64), TILE_ROWS)


def query_mask(bounds, work: Schedule, row, tile, key_size: int, static: Static) -> Callable:
    """mask(values, key block): the tile with 0 where a query does not see the key.

    bounds: first and end of the queries, in global memory, as `work` is. tile: of 64 queries.
    """
    plgpu = mosaic()
    queries, along_queries = pl.ds(tile * TILE_ROWS, TILE_ROWS), plgpu.Layout.WGMMA.reduce(1)
    load = lambda x: plgpu.load(x.at[row, queries], layout=along_queries, optimized=False)
    first, end = (load(x) for x in bounds)
    unmasked = work.unmasked[row, tile, 0], work.unmasked[row, tile, 1]

    def mask(values, block):
        def some(x):
            query = tile * TILE_ROWS if static.targets else None
            return masked([x], first, end, query, block * key_size, 0)[0]

        seen = (unmasked[0] <= block) & (block < unmasked[1])
        return lax.cond(seen, lambda x: x, some, values)

    return mask


def masked(values, first, end, query, key, query_axis: int):
    """The tiles with 0 where the query does not see the key.

    values: float32 tiles of queries by keys, or of keys by queries if query_axis is 1.
    first, end: the bounds of the queries of the tile, along that axis.
    query: row index of the first query; None where no query sees itself apart from its interval.
    key: row index of the first key.
    """
    plgpu = mosaic()
    shape = values[0].shape
    index = lambda axis: plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)
    first, end = (lax.broadcast_in_dim(x, shape, [query_axis]) for x in (first, end))
    # A thread holds the columns 8 n + its own few: n is known to the compiler, and what is compared
    # with it does not depend on n. Otherwise the compiler keeps all its column numbers in
    # registers.
    j = index(1 - query_axis)
    of_thread = j & 7
    seen = (j - of_thread >= first - key - of_thread) & (j - of_thread < end - key - of_thread)
    if query is not None:
        # Padding too, whose vectors are 0. Not where end > 0: a target without any history has
        # end = 0 as well.
        seen |= j - of_thread == index(query_axis) + (query - key) - of_thread
    return [jnp.where(seen, x, 0.0) for x in values]


def half_scores(products, scale: float, bias_tile):
    """Half the scores, float32: scale / 2 q.k, plus the tile of half the bias if there is one."""
    half = products * (0.5 * scale)
    if bias_tile is not None:
        half += mosaic().load(bias_tile, layout=mosaic().Layout.WGMMA).astype(jnp.float32)
    return half


def silu(half):
    """SiLU(2 half) = half (1 + tanh(half)): one special-function instruction per entry."""
    return half * jnp.tanh(half) + half


def silu_and_slope(half):
    """s = SiLU(2 half) and twice its derivative, 1 + t + s (1 - t) with t = tanh(half)."""
    t = jnp.tanh(half)
    value = half * t + half
    return value, (t + 1.0) + (value - t * value)
