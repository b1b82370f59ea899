"""Sums for the gradients of the bias tables on the Triton backend, without atomics.

The same bits in every run. A program owns some tiles of one block diagonal. It sums the score
gradients of a tile over the heads first, because the bias is common to them. All tiles of a block
diagonal hold the same distances, so it adds them entry by entry; and the buckets of a tile are a
short range as timestamps are sorted, so it adds up one bucket after another. The partial results of
the programs are added in a fixed order by XLA.

Letters: G block diagonals, S block size, T tiles of a diagonal, C programs that share a diagonal.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.triton import tile
from pallas_kernels.triton.tile import Inputs, Static, Tokens
from pallas_kernels.visible_keys import VisibleKeys, key_block_ranges

# About this many in all: several for each of the 100 to 150 processors of a large GPU.
PROGRAMS = 1024


def table_sums(static: Static, inputs: Inputs):
    """The diagonals [G, S, S] of `position_gradient` and the gradient of the time table.

    None in place of one without table.
    """
    tables, (rows, length, _, _) = inputs.tables, inputs.q.shape
    size = min(static.blocks[:2])
    in_row = -(-length // size)
    reach = min(in_row - 1, -(-(static.max_length - 1) // size))  # no pair is further apart
    tiles, counts = _tiles_of_diagonals(inputs.tokens, size, reach)
    diagonals = len(counts)
    sharers = max(1, min(rows * in_row, PROGRAMS // diagonals))

    entries = 0 if tables.time is None else pl.next_power_of_2(len(tables.time))
    shapes = [(diagonals, sharers, size, size), (diagonals, sharers, entries)]
    outputs = [
        None if table is None else jax.ShapeDtypeStruct(shape, jnp.float32)
        for table, shape in zip(tables, shapes, strict=True)
    ]
    kernel = functools.partial(_table_kernel, static=static, size=size, in_row=in_row)
    args, programs = (tiles, counts, inputs), diagonals * sharers
    sums, d_time = tile.launch(
        kernel, args, outputs, programs, static.blocks, static.interpret, "hstu_d_tables"
    )

    if sums is not None:
        sums = sums.sum(1) / static.max_length
    if tables.time is not None:
        d_time = d_time.sum((0, 1))[: len(tables.time)] / static.max_length
    return sums, d_time


def _tiles_of_diagonals(tokens: Tokens, size: int, reach: int):
    """Tiles with visible pairs of each block diagonal, r * Q + query block, and their number."""
    ranges = key_block_ranges(VisibleKeys(*tokens[:4]), size, size)
    a, b, c, d = (ranges[..., n] for n in range(4))
    key_block = jnp.arange(ranges.shape[1]) - jnp.arange(reach + 1)[:, None, None]
    visits = ((a <= key_block) & (key_block < b)) | ((c <= key_block) & (key_block < d))
    visits = visits.reshape(len(visits), -1)
    tiles = jnp.argsort(~visits, axis=1, stable=True)
    return tiles.astype(jnp.int32), visits.sum(1).astype(jnp.int32)


def _table_kernel(tiles, counts, inputs: Inputs, *outputs, static: Static, size: int, in_row: int):
    tokens, tables, q_ref, k_ref, v_ref, d_out_ref = inputs
    diagonals_ref, time_ref = outputs
    sharers = (time_ref if diagonals_ref is None else diagonals_ref).shape[1]
    diagonal, sharer = pl.program_id(0) // sharers, pl.program_id(0) % sharers
    square = jnp.zeros((size, size), jnp.float32)

    def visit(n, carry):
        diagonals, times = carry
        at = tiles[diagonal, sharer + n * sharers]
        row, block = at // in_row, at % in_row
        starts = block * size, (block - diagonal) * size
        query = tile.load_tokens(tokens, row, starts[0], size, axis=0)
        key = tile.load_tokens(tokens, row, starts[1], size, axis=1)
        bias = tile.add_bias(square, query, key, tables)

        def add_head(head, total):
            of_queries = lambda ref: tile.load_vectors(ref, row, starts[0], size, head)
            of_keys = lambda ref: tile.load_vectors(ref, row, starts[1], size, head)
            q, d_out = of_queries(q_ref), of_queries(d_out_ref)
            k, v = of_keys(k_ref), of_keys(v_ref)
            scores = tile.dot(q, k.T, static) * static.scale + bias
            d_weights = tile.dot(d_out, v.T, static)
            return total + tile.score_gradient(scores, d_weights, static, q.dtype)[1]

        sees = tile.visible_pairs(query, key, tokens)
        total = jnp.where(sees, jax.lax.fori_loop(0, q_ref.shape[2], add_head, square), 0.0)
        if diagonals is not None:
            targets = tokens.target_position is not None
            diagonals += jnp.where(tile.of_targets(query), 0.0, total) if targets else total
        if times is not None:
            bucket = jnp.where(sees, tile.buckets(query, key, tables.time.shape[0]), -1)
            times = _add_buckets(times, total, bucket)
        return diagonals, times

    diagonals = None if diagonals_ref is None else square
    times = None if time_ref is None else jnp.zeros(time_ref.shape[2], jnp.float32)
    steps = jnp.maximum(counts[diagonal] - sharer + sharers - 1, 0) // sharers
    diagonals, times = jax.lax.fori_loop(0, steps, visit, (diagonals, times))
    if diagonals_ref is not None:
        diagonals_ref[diagonal, sharer] = diagonals
    if time_ref is not None:
        time_ref[diagonal, sharer] = times


def _add_buckets(times, values, bucket):
    """`times` plus the sum of the values of each bucket; bucket is -1 where there is no pair."""
    entries = times.shape[0]
    lowest, highest = jnp.min(jnp.where(bucket < 0, entries, bucket)), jnp.max(bucket)

    def add(b, times):
        total = jnp.sum(jnp.where(bucket == b, values, 0.0))
        return times + jnp.where(jnp.arange(entries) == b, total, 0.0)

    return jax.lax.fori_loop(lowest, highest + 1, add, times)
