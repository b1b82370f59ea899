"""Gradients of the bias tables of the Mosaic GPU attention, added in a fixed order.

Tiles of 64 queries by 64 keys on one block diagonal hold the same distances i - j, so a program
walks such tiles: it adds dS of all heads of a tile, then that sum to the sum of its diagonal, and
for time to the bucket that each pair has, found by comparing with the limits of the few buckets
that occur in the tile. The sums over heads stay in registers. Two warpgroups take the two halves of
128 queries, hence two neighbouring diagonals.

Letters: R rows, L tokens in a row, W tiles of 64 queries, K tiles of 64 keys, D diagonals of 128
queries by 64 keys, E splits of a diagonal, P position-table entries.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.arguments import ArrayOrRef
from pallas_kernels.bucket_ranges import REACHED_BUCKETS, bucket_limits, bucket_ranges
from pallas_kernels.mosaic_gpu.bias_tiles import BiasTiles, bias_part
from pallas_kernels.mosaic_gpu.programs import half_of, half_scores, masked, silu_and_slope
from pallas_kernels.mosaic_gpu.tiles import (
    TILE_ROWS,
    Static,
    Vectors,
    fill,
    launch,
    lowered_once,
    matrix_tiles,
    mosaic,
    release,
    release_loaded,
    ring,
    split_warpgroups,
    store,
    wait_for,
)
from pallas_kernels.table_gradients import position_gradient
from pallas_kernels.visible_keys import VisibleKeys, key_block_ranges

WARPGROUPS = 2
PROGRAMS = 512  # at least; a few for each of the 132 multiprocessors of an H100
TILE = (TILE_ROWS, TILE_ROWS)  # of a warpgroup


class Diagonals(NamedTuple):
    """The diagonals 2 q - k of query blocks q of 128 and key blocks k of 64, and what to visit.

    Attributes:
      numbers: of the diagonals.
      order: per diagonal r * Q + q, the blocks that hold a visible pair first. counts: how many do.
      visited: which blocks of queries and keys hold a visible pair.
    """

    numbers: list[int]
    order: Int[Array, "D RQ"]
    counts: Int[Array, " D"]
    visited: Bool[Array, "R Q K"]


def tiles_of_diagonals(visible: VisibleKeys, reach: int) -> Diagonals:
    """The diagonals with visible pairs; reach: furthest distance in tokens of a visible pair."""
    length = visible.first.shape[1]
    ranges = key_block_ranges(visible, 2 * TILE_ROWS, TILE_ROWS)
    a, b, c, d = (x[..., None] for x in jnp.moveaxis(ranges, -1, 0))
    key = jnp.arange(length // TILE_ROWS)
    visited = ((a <= key) & (key < b)) | ((c <= key) & (key < d))

    furthest = min(-(-reach // TILE_ROWS), length // TILE_ROWS - 1)
    numbers = list(range(-1, furthest + 1))
    query = jnp.arange(visited.shape[1])
    on_diagonal = 2 * query - jnp.array(numbers)[:, None]  # the key block of each query block
    inside = (on_diagonal >= 0) & (on_diagonal < len(key))
    chosen = visited[:, query, jnp.clip(on_diagonal, 0, len(key) - 1)] & inside
    chosen = jnp.moveaxis(chosen, 0, 1).reshape(len(numbers), -1)
    order = jnp.argsort(~chosen, axis=1, stable=True).astype(jnp.int32)
    return Diagonals(numbers, order, chosen.sum(1).astype(jnp.int32), visited)


class _Sums(NamedTuple):
    """The outputs of the kernel, or the references to them; None where not needed."""

    diagonal: ArrayOrRef  # [programs, 2, 64, 64]
    column: ArrayOrRef  # [R, W, K, 64], where queries are targets
    time: ArrayOrRef  # [programs, 2, 64, buckets], by query and bucket


@functools.partial(lowered_once, static=("sizes", "static"))
def table_gradients(
    vectors: Vectors,
    segments: Int[Array, "R L"],
    visible: VisibleKeys,
    bias: BiasTiles,
    times: tuple[Int[Array, "R L"] | None, Int[Array, "R L"] | None],
    sizes: tuple[int, int],
    static: Static,
) -> tuple[Float[Array, " P"] | None, Float[Array, " buckets"] | None]:
    """The gradients of the position and the time table for padded inputs.

    times: of queries and keys. sizes: entries of the two tables; None for a table of 0 entries.
    """
    plgpu = mosaic()
    W = plgpu.Layout.WGMMA
    num_positions, num_buckets = sizes
    q, value_width = vectors.q, vectors.v.shape[3]
    rows, length, heads, width = q.shape
    query_blocks, key_blocks = length // (2 * TILE_ROWS), length // TILE_ROWS
    diagonals = tiles_of_diagonals(visible, static.max_length - 1)
    lowest = diagonals.numbers[0]
    splits = min(rows * query_blocks, -(-PROGRAMS // len(diagonals.numbers)))
    programs = len(diagonals.numbers) * splits
    lanes = min(num_buckets, REACHED_BUCKETS)
    bucket_shape = (TILE_ROWS, -(-lanes // 8) * 8)
    stages = 2 if max(width, value_width) <= 128 else 1
    apart = bool(num_positions) and static.targets  # some distances are not i - j

    # Integers of the tokens and the buckets.
    ints = [visible.first, visible.end]
    if static.targets:
        ints += [visible.end <= jnp.arange(length)]
    if num_buckets:
        query_times, key_times = times
        assert query_times is not None and key_times is not None
        ints += [query_times, key_times, bucket_limits(num_buckets)]
        ints += [bucket_ranges(segments, visible, query_times, key_times, num_buckets, TILE_ROWS)]
    ints = [x.astype(jnp.int32) for x in ints]

    output = lambda wanted, *shape: jax.ShapeDtypeStruct(shape, jnp.float32) if wanted else None
    out_type = _Sums(
        output(num_positions, programs, WARPGROUPS, *TILE),
        output(apart, rows, key_blocks, key_blocks, TILE_ROWS),
        output(num_buckets, programs, WARPGROUPS, *bucket_shape),
    )
    written = [name for name, x in out_type._asdict().items() if x is not None]

    def body(q_gmem, k_gmem, v_gmem, do_gmem, *refs):
        bias_gmem, order_gmem, counts_gmem, refs = refs[:2], refs[2], refs[3], refs[4:]
        ints_gmem, refs = refs[: len(ints)], refs[len(ints) :]
        out_gmem = _Sums(None, None, None)._replace(**dict(zip(written, refs, strict=False)))
        q_ring, do_ring, k_ring, v_ring, bias_ring, turn_smem, vector_smem = refs[len(written) :]
        program = lax.axis_index("program")
        diagonal, split = lax.div(program, splits), lax.rem(program, splits)
        count = counts_gmem[diagonal]
        tiles = lax.div(jnp.maximum(count - split, 0) + splits - 1, splits)

        def place(m):
            """Row, query block and key block of this program's tile m."""
            item = order_gmem[diagonal, split + m * splits]
            block = lax.rem(item, query_blocks)
            return lax.div(item, query_blocks), block, 2 * block - (diagonal + lowest)

        def copy():
            def part(x_gmem, of_keys):
                def source(n):
                    row, query, key = place(lax.div(n, heads))
                    start, size = (key, 1) if of_keys else (query * 2, 2)
                    at = pl.ds(start * TILE_ROWS, size * TILE_ROWS)
                    return x_gmem.at[row, at, lax.rem(n, heads)]

                return source

            rings = [(q_ring, part(q_gmem, False)), (k_ring, part(k_gmem, True))]
            rings += [(do_ring, part(do_gmem, False)), (v_ring, part(v_gmem, True))]

            @pl.loop(0, tiles)
            def _(m):
                row, query, key = place(m)
                at = query * 2 * TILE_ROWS, key * TILE_ROWS
                block = bias_part(bias_gmem, row, *at, 2 * TILE_ROWS, TILE_ROWS)
                fill(m + 1, [(bias_ring, lambda _: block)], start=m)
                fill((m + 1) * heads, rings, start=m * heads)

        def compute(warpgroup):
            half = half_of(warpgroup)
            zeros = lambda shape: plgpu.layout_cast(jnp.zeros(shape, jnp.float32), W)
            spread = lambda x, axis: lax.broadcast_in_dim(x, TILE, [axis])

            def along(x, row, block, axis):
                at = x.at[row, pl.ds(block * TILE_ROWS, TILE_ROWS)]
                return plgpu.load(at, layout=W.reduce(1 - axis), optimized=False)

            def head_sum(m, row, query, key):
                """2 dS of tile m, summed over the heads."""
                bias_tile = wait_for(bias_ring, m).at[half]

                def add(head, total):
                    n = m * heads + head
                    queries, keys = wait_for(q_ring, n).at[half], wait_for(k_ring, n)
                    d_outs, values = wait_for(do_ring, n).at[half], wait_for(v_ring, n)

                    def multiply(scores, d_weights):
                        plgpu.wgmma(scores, queries, keys.transpose((1, 0)))
                        plgpu.wgmma(d_weights, d_outs, values.transpose((1, 0)))
                        return scores[...], d_weights[...]

                    accumulators = [plgpu.ACC(TILE, jnp.float32)] * 2
                    products, d_weights = pl.run_scoped(multiply, *accumulators)
                    release(q_ring, k_ring, do_ring, v_ring, tile=n)
                    _, slope = silu_and_slope(half_scores(products, static.scale, bias_tile))
                    return total + slope * d_weights

                total = lax.fori_loop(0, heads, add, zeros(TILE))
                release_loaded(bias_ring, tile=m)
                first, end = (along(x, row, query, 0) for x in ints_gmem[:2])
                own = query * TILE_ROWS if static.targets else None
                return masked([total], first, end, own, key * TILE_ROWS, 0)[0]

            def add_buckets(by_bucket, total, row, query, key):
                """The sums by query and bucket, with those of a tile."""
                query_times_gmem, key_times_gmem, limits_gmem, ranges_gmem = ints_gmem[-4:]
                seconds = spread(along(query_times_gmem, row, query, 0), 0)
                seconds = jnp.abs(seconds - spread(along(key_times_gmem, row, key, 1), 1))

                def add(bucket, sums):
                    smallest, largest = limits_gmem[bucket, 0], limits_gmem[bucket, 1]
                    inside = (seconds >= smallest) & (seconds <= largest)
                    of_bucket = jnp.sum(jnp.where(inside, total, 0.0), axis=1)
                    lane = plgpu.broadcasted_iota(jnp.int32, bucket_shape, 1, layout=W)
                    of_bucket = lax.broadcast_in_dim(of_bucket, bucket_shape, [0])
                    return sums + jnp.where(lane == bucket, of_bucket, 0.0)

                low, high = (ranges_gmem[row, query, key, n] for n in (0, 1))
                return lax.fori_loop(low, high + 1, add, by_bucket)

            def without_targets(total, row, query, key):
                """`total` without the pairs of targets, whose sums by key are stored."""
                of_target = spread(along(ints_gmem[2], row, query, 0), 0) != 0
                # Each warp holds some rows, so columns are summed as rows of the transposed tile.
                turned = turn_smem.at[warpgroup]
                turned[...] = jnp.where(of_target, total, 0.0).astype(q.dtype)
                columns = plgpu.load(turned.transpose((1, 0)), layout=W).astype(jnp.float32)
                sums, at = jnp.sum(columns, axis=1), out_gmem.column.at[row, query, key]
                store([(sums, vector_smem.at[warpgroup], at)])
                return jnp.where(of_target, 0.0, total)

            def add_tile(m, carry):
                by_distance, by_bucket = carry
                row, block, key = place(m)
                query = 2 * block + warpgroup
                total = head_sum(m, row, query, key)
                if num_buckets:
                    by_bucket = add_buckets(by_bucket, total, row, query, key)
                if apart:
                    total = without_targets(total, row, query, key)
                if num_positions:
                    by_distance = by_distance + total
                return by_distance, by_bucket

            nothing = zeros(TILE), zeros(bucket_shape)
            by_distance, by_bucket = lax.fori_loop(0, tiles, add_tile, nothing)
            if num_positions:
                out_gmem.diagonal[program, warpgroup] = by_distance
            if num_buckets:
                out_gmem.time[program, warpgroup] = by_bucket

        split_warpgroups(WARPGROUPS, compute, copy)

    queue = lambda *shape: ring(matrix_tiles(shape, q.dtype), WARPGROUPS)
    kernel = launch(
        body,
        "hstu_table_gradients",
        programs,
        WARPGROUPS,
        out_type=[x for x in out_type if x is not None],
        scratch_types=[
            queue(stages, 2 * TILE_ROWS, width),
            queue(stages, 2 * TILE_ROWS, value_width),
            queue(stages, TILE_ROWS, width),
            queue(stages, TILE_ROWS, value_width),
            queue(1, 2 * TILE_ROWS, TILE_ROWS),
            matrix_tiles((WARPGROUPS, *TILE), q.dtype) if apart else None,
            plgpu.SMEM((WARPGROUPS, TILE_ROWS), jnp.float32) if apart else None,
        ],
        interpret=static.interpret,
    )
    outputs = kernel(*vectors, *bias, diagonals.order, diagonals.counts, *ints)
    sums = _Sums(None, None, None)._replace(**dict(zip(written, outputs, strict=True)))

    factor = 0.5 / static.max_length  # the kernel sums 2 dS
    d_position = d_time = None
    if num_positions:
        d_position = factor * _position_gradient(sums, diagonals, visible, num_positions)
    if num_buckets:
        d_time = factor * sums.time.sum((0, 1, 2))[:lanes]
        d_time = jnp.pad(d_time, (0, num_buckets - lanes))
    return d_position, d_time


def _position_gradient(
    sums: _Sums, diagonals: Diagonals, visible: VisibleKeys, num_positions: int
) -> Float[Array, " P"]:
    """The gradient of the position table from the sums of the programs."""
    numbers = diagonals.numbers
    by_diagonal = sums.diagonal.reshape(len(numbers), -1, WARPGROUPS, *TILE).sum(1)
    # Warpgroup w of diagonal 2 q - k has the 64 x 64 diagonal 2 q + w - k.
    by_diagonal = jnp.pad(by_diagonal[:, 0], ((0, 1), (0, 0), (0, 0))) + jnp.pad(
        by_diagonal[:, 1], ((1, 0), (0, 0), (0, 0))
    )
    by_diagonal = by_diagonal[-numbers[0] :]  # those before the main one hold none of these pairs

    column_sums = None
    if sums.column is not None:
        seen = jnp.repeat(diagonals.visited, 2, axis=1)[..., None]  # the rest was not written
        rows, length = visible.first.shape
        column_sums = jnp.where(seen, sums.column, 0).sum(1).reshape(rows, length)
    return position_gradient(by_diagonal, column_sums, visible, num_positions)
