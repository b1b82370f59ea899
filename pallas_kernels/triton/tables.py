"""Sums for the gradients of the bias tables on the Triton backend: no atomics, the same bits in every run.

A program owns some tiles of one block diagonal. It sums the score gradients of a tile over the heads first, because
the bias is common to them. All tiles of a block diagonal hold the same distances, so it adds them entry by entry; and
the buckets of a tile are a short range as timestamps are sorted, so it adds up one bucket after another. The partial
results of the programs are added in a fixed order by XLA.

Letters: G block diagonals, S block size, T tiles of a diagonal, C programs that share a diagonal.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.triton import tile
from pallas_kernels.triton.tile import Static, Tables, Tokens
from pallas_kernels.visible_keys import VisibleKeys, key_block_ranges

# about as many in all: several for each of the 100 to 150 processors of a large GPU
PROGRAMS = 1024


def table_sums(static: Static, tokens: Tokens, tables: Tables, q, k, v, d_out):
    """Returns the diagonals [G, S, S] of `position_gradient` and the gradient of the time table; None without table."""
    rows, length, heads, _ = q.shape
    size = min(static.blocks[:2])
    in_row = -(-length // size)
    reach = min(in_row - 1, -(-(static.max_length - 1) // size))  # no pair is further apart
    ahead = reach if static.contexts else 0
    tiles, counts = _tiles_of_diagonals(tokens, size, -ahead, reach)
    diagonals = len(counts)
    sharers = max(1, min(rows * in_row, PROGRAMS // diagonals))

    entries = 0 if tables.time is None else pl.next_power_of_2(len(tables.time))
    shapes = [(diagonals, sharers, size, size), (diagonals, sharers, entries)]
    outputs = [
        None if table is None else jax.ShapeDtypeStruct(shape, jnp.float32)
        for table, shape in zip(tables, shapes, strict=True)
    ]
    kernel = functools.partial(_table_kernel, static=static, size=size, in_row=in_row, ahead=ahead)
    args = tiles, counts, tokens, tables, q, k, v, d_out
    sums, d_time = tile.launch(
        kernel, args, outputs, diagonals * sharers, static.blocks, static.interpret, "hstu_d_tables"
    )
    if sums is not None:
        sums = sums[ahead:].sum(1) / static.max_length
    if tables.time is not None:
        d_time = d_time.sum((0, 1))[: len(tables.time)] / static.max_length
    return sums, d_time


def _tiles_of_diagonals(tokens: Tokens, size: int, lowest: int, highest: int):
    """Returns per block diagonal its tiles with visible pairs, r * Q + query block, [G, T], and their number."""
    ranges = key_block_ranges(VisibleKeys(*tokens[:4]), size, size)
    a, b, c, d = (ranges[..., n] for n in range(4))
    key_block = jnp.arange(ranges.shape[1]) - jnp.arange(lowest, highest + 1)[:, None, None]
    visits = ((a <= key_block) & (key_block < b)) | ((c <= key_block) & (key_block < d))
    visits = visits.reshape(len(visits), -1)
    return jnp.argsort(~visits, axis=1, stable=True).astype(jnp.int32), visits.sum(1).astype(
        jnp.int32
    )


def _table_kernel(
    tiles, counts, tokens, tables, q_ref, k_ref, v_ref, d_out_ref, diagonals_ref, time_ref,
    *, static: Static, size: int, in_row: int, ahead: int,
):  # fmt: skip
    sharers = (time_ref if diagonals_ref is None else diagonals_ref).shape[1]
    diagonal, sharer = pl.program_id(0) // sharers, pl.program_id(0) % sharers
    square = jnp.zeros((size, size), jnp.float32)

    def visit(n, carry):
        diagonals, times = carry
        at = tiles[diagonal, sharer + n * sharers]
        row, block = at // in_row, at % in_row
        starts = block * size, (block - diagonal + ahead) * size
        query = tile.load_tokens(tokens, row, starts[0], size, axis=0)
        key = tile.load_tokens(tokens, row, starts[1], size, axis=1)
        bias = tile.add_bias(square, query, key, tables)

        def add_head(head, total):
            q, d_out = (
                tile.load_vectors(ref, row, starts[0], size, head) for ref in (q_ref, d_out_ref)
            )
            k, v = (tile.load_vectors(ref, row, starts[1], size, head) for ref in (k_ref, v_ref))
            scores = tile.dot(q, k.T, static) * static.scale + bias
            return (
                total
                + tile.score_gradient(scores, tile.dot(d_out, v.T, static), static, q.dtype)[1]
            )

        sees = tile.visible_pairs(query, key, tokens)
        total = jnp.where(sees, jax.lax.fori_loop(0, q_ref.shape[2], add_head, square), 0.0)
        if diagonals is not None:
            on_diagonal = (
                total
                if query.position is None
                else jnp.where(tile.diagonal_pairs(query, key), total, 0.0)
            )
            diagonals += on_diagonal
        if times is not None:
            times = _add_buckets(
                times, total, jnp.where(sees, tile.buckets(query, key, tables.time.shape[0]), -1)
            )
        return diagonals, times

    times = None if time_ref is None else jnp.zeros(time_ref.shape[2], jnp.float32)
    steps = jnp.maximum(counts[diagonal] - sharer + sharers - 1, 0) // sharers
    diagonals, times = jax.lax.fori_loop(
        0, steps, visit, (None if diagonals_ref is None else square, times)
    )
    if diagonals_ref is not None:
        diagonals_ref[diagonal, sharer] = diagonals
    if time_ref is not None:
        time_ref[diagonal, sharer] = times


def _add_buckets(times, values, bucket):
    """Returns times with the sum of the values of each bucket added; bucket is -1 where there is no pair."""
    entries = times.shape[0]
    lowest, highest = jnp.min(jnp.where(bucket < 0, entries, bucket)), jnp.max(bucket)

    def add(b, times):
        return times + jnp.where(
            jnp.arange(entries) == b, jnp.sum(jnp.where(bucket == b, values, 0.0)), 0.0
        )

    return jax.lax.fori_loop(lowest, highest + 1, add, times)
