"""Gradients of the bias tables of the Mosaic GPU kernels: summed over heads first, in registers, in a fixed order.

Tiles of 64 queries by 64 keys on one block diagonal hold the same distances i - j, so a program walks such tiles:
it adds dS of all heads of a tile, then that sum to the sum of its diagonal, and for time to the bucket that each pair
has, found by comparing with the limits of the few buckets that occur in the tile. Two warpgroups take the two halves
of 128 queries, hence two neighbouring diagonals.

Letters: R rows, L tokens in a row, W tiles of 64 queries, K tiles of 64 keys, D diagonals of 128 queries by 64 keys,
E splits of a diagonal, P position-table entries.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.bucket_ranges import REACHED_BUCKETS, bucket_limits, bucket_ranges
from pallas_kernels.mosaic_gpu.bias_tiles import BiasTiles, bias_part
from pallas_kernels.mosaic_gpu.tiles import (
    TILE_ROWS,
    Options,
    fill,
    half_scores,
    launch,
    lowered_once,
    masked,
    matrix_tiles,
    mosaic,
    release,
    release_loaded,
    ring,
    silu_and_slope,
    split_warpgroups,
    store,
    wait_for,
)
from pallas_kernels.table_gradients import position_gradient
from pallas_kernels.visible_keys import VisibleKeys, key_block_ranges

WARPGROUPS = 2
PROGRAMS = 512  # at least; a few for each of the 132 multiprocessors of an H100
TARGET, CONTEXT = 2, 1  # kinds of tokens


def tiles_of_diagonals(
    visible: VisibleKeys, reach: int, ahead: bool
) -> tuple[list[int], Int[Array, "D RQ"], Int[Array, " D"], Bool[Array, "R Q K"]]:
    """Returns the diagonals 2 q - k of query blocks q of 128 and key blocks k of 64, and the blocks to visit on each.

    Per diagonal r * Q + q of the blocks that hold a visible pair come first, then the rest; and how many do.
    reach: furthest distance in tokens of a visible pair.
    """
    length = visible.first.shape[1]
    a, b, c, d = (
        x[..., None]
        for x in jnp.moveaxis(key_block_ranges(visible, 2 * TILE_ROWS, TILE_ROWS), -1, 0)
    )
    key = jnp.arange(length // TILE_ROWS)
    visited = ((a <= key) & (key < b)) | ((c <= key) & (key < d))
    furthest = min(-(-reach // TILE_ROWS), length // TILE_ROWS - 1)
    diagonals = list(range(-1 - (furthest if ahead else 0), furthest + 1))
    query = jnp.arange(visited.shape[1])
    on_diagonal = 2 * query - jnp.array(diagonals)[:, None]  # the key block of each query block
    inside = (on_diagonal >= 0) & (on_diagonal < len(key))
    chosen = visited[:, query, jnp.clip(on_diagonal, 0, len(key) - 1)] & inside
    chosen = jnp.moveaxis(chosen, 0, 1).reshape(len(diagonals), -1)
    order = jnp.argsort(~chosen, axis=1, stable=True).astype(jnp.int32)
    return diagonals, order, chosen.sum(1).astype(jnp.int32), visited


@functools.partial(lowered_once, static=("num_positions", "num_buckets", "options"))
def table_gradients(
    q,
    k,
    v,
    d_out,
    segments: Int[Array, "R L"],
    contexts: Bool[Array, "R L"] | None,
    visible: VisibleKeys,
    bias: BiasTiles,
    query_times: Int[Array, "R L"] | None,
    key_times: Int[Array, "R L"] | None,
    num_positions: int,
    num_buckets: int,
    options: Options,
) -> tuple[Float[Array, " P"] | None, Float[Array, " buckets"] | None]:
    """Returns the gradients of the position and the time table for padded inputs; None for a table of 0 entries."""
    plgpu = mosaic()
    rows, length, heads, width = q.shape
    value_width = v.shape[3]
    W = plgpu.Layout.WGMMA
    query_blocks, key_blocks = length // (2 * TILE_ROWS), length // TILE_ROWS
    diagonals, order, counts, visited = tiles_of_diagonals(
        visible, options.max_length - 1, options.ahead
    )
    splits = min(rows * query_blocks, -(-PROGRAMS // len(diagonals)))
    tile_shape = (TILE_ROWS, TILE_ROWS)
    lanes = min(num_buckets, REACHED_BUCKETS)
    bucket_shape = (TILE_ROWS, -(-lanes // 8) * 8)  # sums by query and bucket
    stages = 2 if max(width, value_width) <= 128 else 1
    apart = visible.position is not None  # some distances are not i - j
    ints = [visible.first, visible.end]
    if apart:
        kind = jnp.where(visible.end <= jnp.arange(length), TARGET, 0)
        in_prefix = (
            jnp.zeros_like(segments) if contexts is None else jnp.where(contexts, CONTEXT, 0)
        )
        ints += [jnp.maximum(kind, in_prefix) if options.targets else in_prefix, in_prefix]
    if num_buckets:
        assert query_times is not None and key_times is not None
        ints += [query_times, key_times, bucket_limits(num_buckets)]
        ints += [bucket_ranges(segments, visible, query_times, key_times, num_buckets, TILE_ROWS)]
    ints = [x.astype(jnp.int32) for x in ints]

    sums = jax.ShapeDtypeStruct((rows, key_blocks, key_blocks, TILE_ROWS), jnp.float32)
    out_type = {}
    programs = len(diagonals) * splits
    if num_positions:
        out_type["diagonal"] = jax.ShapeDtypeStruct(
            (programs, WARPGROUPS, *tile_shape), jnp.float32
        )
        if apart:
            out_type |= {"row": sums, "column": sums}
    if num_buckets:
        out_type["time"] = jax.ShapeDtypeStruct((programs, WARPGROUPS, *bucket_shape), jnp.float32)

    def body(
        q_gmem, k_gmem, v_gmem, do_gmem, tiles_gmem, lookup_gmem, order_gmem, counts_gmem, *rest
    ):
        ints_gmem, rest = list(rest[: len(ints)]), rest[len(ints) :]
        out_gmem, rest = dict(zip(out_type, rest, strict=False)), rest[len(out_type) :]
        q_ring, do_ring, k_ring, v_ring, bias_ring, turn_smem, vector_smem = rest
        program = lax.axis_index("program")
        diagonal, split = lax.div(program, splits), lax.rem(program, splits)
        count = counts_gmem[diagonal]
        tiles = lax.div(jnp.maximum(count - split, 0) + splits - 1, splits)

        def place(m):
            """Row, query block and key block of this program's tile m."""
            item = order_gmem[diagonal, split + m * splits]
            block = lax.rem(item, query_blocks)
            return lax.div(item, query_blocks), block, 2 * block - (diagonal + diagonals[0])

        def copy():
            def part(x_gmem, of_keys):
                def source(n):
                    row, query, key = place(lax.div(n, heads))
                    at = (
                        pl.ds(key * TILE_ROWS, TILE_ROWS)
                        if of_keys
                        else pl.ds(query * 2 * TILE_ROWS, 2 * TILE_ROWS)
                    )
                    return x_gmem.at[row, at, lax.rem(n, heads)]

                return source

            @pl.loop(0, tiles)
            def _(m):
                row, query, key = place(m)
                block = bias_part(
                    (tiles_gmem, lookup_gmem),
                    row,
                    query * 2 * TILE_ROWS,
                    key * TILE_ROWS,
                    2 * TILE_ROWS,
                    TILE_ROWS,
                )
                fill(m + 1, [(bias_ring, lambda _: block)], start=m)
                fill(
                    (m + 1) * heads,
                    [
                        (q_ring, part(q_gmem, False)),
                        (k_ring, part(k_gmem, True)),
                        (do_ring, part(do_gmem, False)),
                        (v_ring, part(v_gmem, True)),
                    ],
                    start=m * heads,
                )

        def compute(warpgroup):
            half = pl.ds(pl.multiple_of(warpgroup * TILE_ROWS, 64), TILE_ROWS)

            def along(x, row, block, axis):
                at = x.at[row, pl.ds(block * TILE_ROWS, TILE_ROWS)]
                return plgpu.load(at, layout=W.reduce(1 - axis), optimized=False)

            def head_sum(m, row, query, key):
                bias_tile = wait_for(bias_ring, m).at[half]

                def add(head, total):
                    n = m * heads + head
                    queries, keys = wait_for(q_ring, n).at[half], wait_for(k_ring, n)
                    d_outs, values = wait_for(do_ring, n).at[half], wait_for(v_ring, n)

                    def multiply(scores, d_weights):
                        plgpu.wgmma(scores, queries, keys.transpose((1, 0)))
                        plgpu.wgmma(d_weights, d_outs, values.transpose((1, 0)))
                        return scores[...], d_weights[...]

                    products, d_weights = pl.run_scoped(
                        multiply, *[plgpu.ACC(tile_shape, jnp.float32)] * 2
                    )
                    release(q_ring, k_ring, do_ring, v_ring, tile=n)
                    _, slope = silu_and_slope(half_scores(products, options.scale, bias_tile))
                    return total + slope * d_weights

                total = lax.fori_loop(0, heads, add, zeros())
                release_loaded(bias_ring, tile=m)
                first, end = (along(x, row, query, 0) for x in ints_gmem[:2])
                own = query * TILE_ROWS if options.targets else None
                return masked([total], first, end, own, key * TILE_ROWS, 0)[0]

            zeros = lambda: plgpu.layout_cast(jnp.zeros(tile_shape, jnp.float32), W)
            spread = lambda x, axis: lax.broadcast_in_dim(x, tile_shape, [axis])

            def add_tile(m, carry):
                by_distance, by_bucket = carry
                row, block, key = place(m)
                query = 2 * block + warpgroup
                total = head_sum(m, row, query, key)
                if num_buckets:
                    query_times_gmem, key_times_gmem, limits_gmem, ranges_gmem = ints_gmem[-4:]
                    seconds = spread(along(query_times_gmem, row, query, 0), 0)
                    seconds = jnp.abs(seconds - spread(along(key_times_gmem, row, key, 1), 1))

                    def add_bucket(bucket, sums):
                        inside = (seconds >= limits_gmem[bucket, 0]) & (
                            seconds <= limits_gmem[bucket, 1]
                        )
                        of_bucket = jnp.sum(jnp.where(inside, total, 0.0), axis=1)
                        lane = plgpu.broadcasted_iota(jnp.int32, bucket_shape, 1, layout=W)
                        return sums + jnp.where(
                            lane == bucket, lax.broadcast_in_dim(of_bucket, bucket_shape, [0]), 0.0
                        )

                    low, high = (ranges_gmem[row, query, key, n] for n in (0, 1))
                    by_bucket = lax.fori_loop(low, high + 1, add_bucket, by_bucket)
                if num_positions and apart:
                    query_kind, in_prefix = (
                        along(x, row, at, n)
                        for n, (x, at) in enumerate(zip(ints_gmem[2:4], (query, key), strict=True))
                    )
                    query_kind, in_prefix = spread(query_kind, 0), spread(in_prefix, 1)
                    column = query_kind == TARGET
                    at_row = (query_kind == CONTEXT) | (
                        (in_prefix == CONTEXT) & (query_kind != TARGET)
                    )
                    row_sums = jnp.sum(jnp.where(at_row, total, 0.0), axis=1)
                    # Each warp holds some rows, so columns are summed as rows of the transposed tile.
                    tile = turn_smem.at[warpgroup]
                    tile[...] = jnp.where(column, total, 0.0).astype(q.dtype)
                    column_sums = jnp.sum(
                        plgpu.load(tile.transpose((1, 0)), layout=W).astype(jnp.float32), axis=1
                    )
                    for n, (name, value) in enumerate((("row", row_sums), ("column", column_sums))):
                        store(
                            [
                                (
                                    value,
                                    vector_smem.at[n, warpgroup],
                                    out_gmem[name].at[row, query, key],
                                )
                            ]
                        )
                    total = jnp.where(at_row | column, 0.0, total)
                if num_positions:
                    by_distance = by_distance + total
                return by_distance, by_bucket

            no_buckets = plgpu.layout_cast(jnp.zeros(bucket_shape, jnp.float32), W)
            by_distance, by_bucket = lax.fori_loop(0, tiles, add_tile, (zeros(), no_buckets))
            if num_positions:
                out_gmem["diagonal"][program, warpgroup] = by_distance
            if num_buckets:
                out_gmem["time"][program, warpgroup] = by_bucket

        split_warpgroups(WARPGROUPS, compute, copy)

    pair = lambda n, at: ring(matrix_tiles((stages, at, n), q.dtype), WARPGROUPS)
    kernel = launch(
        body,
        "hstu_table_gradients",
        programs,
        WARPGROUPS,
        out_type=list(out_type.values()),
        scratch_types=[
            pair(width, 2 * TILE_ROWS),
            pair(value_width, 2 * TILE_ROWS),
            pair(width, TILE_ROWS),
            pair(value_width, TILE_ROWS),
            ring(matrix_tiles((1, 2 * TILE_ROWS, TILE_ROWS), q.dtype), WARPGROUPS),
            matrix_tiles((WARPGROUPS, *tile_shape), q.dtype) if num_positions and apart else None,
            plgpu.SMEM((2, WARPGROUPS, TILE_ROWS), jnp.float32)
            if num_positions and apart
            else None,
        ],
        interpret=options.interpret,
    )
    sums = dict(zip(out_type, kernel(q, k, v, d_out, *bias, order, counts, *ints), strict=True))
    factor = 0.5 / options.max_length  # the kernel sums 2 dS
    d_position = d_time = None
    if num_positions:
        # Warpgroup w of diagonal 2 q - k has the 64 x 64 diagonal 2 q + w - k.
        by_diagonal = (
            sums["diagonal"].reshape(len(diagonals), splits, WARPGROUPS, *tile_shape).sum(1)
        )
        by_diagonal = jnp.pad(by_diagonal[:, 0], ((0, 1), (0, 0), (0, 0))) + jnp.pad(
            by_diagonal[:, 1], ((1, 0), (0, 0), (0, 0))
        )
        by_diagonal = by_diagonal[
            -diagonals[0] :
        ]  # those before the main one hold none of these pairs
        seen = jnp.repeat(visited, 2, axis=1)[..., None]  # the rest was not written
        row_sums = column_sums = None
        if apart:
            row_sums = jnp.where(seen, sums["row"], 0).sum(2).reshape(rows, length)
            column_sums = jnp.where(seen, sums["column"], 0).sum(1).reshape(rows, length)
        if not options.targets:
            column_sums = None
        d_position = factor * position_gradient(
            by_diagonal, row_sums, column_sums, visible, num_positions
        )
    if num_buckets:
        d_time = factor * sums["time"].sum((0, 1, 2))[:lanes]
        d_time = jnp.pad(d_time, (0, num_buckets - lanes))
    return d_position, d_time
