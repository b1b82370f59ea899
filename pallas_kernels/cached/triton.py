"""Attention to cached keys and values as a Pallas kernel on the Triton backend, or interpreted.

A program computes one block of queries of one head against a part of the keys. Where queries are
few, as when one event is appended, the keys are divided among programs: without a softmax their
results need only be added.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.arguments import ArrayOrRef, Bias, Options
from pallas_kernels.block_sizes import Blocks
from pallas_kernels.cached.attention import Queries
from pallas_kernels.masks import LAST_BUCKET, time_bucket
from pallas_kernels.triton import tile
from pallas_kernels.triton.tile import Static

PROGRAMS = 264  # enough of them for two on each of the 132 processors of an H100


class Inputs(NamedTuple):
    """The arrays that the kernel reads; those of the queries are int32 [R, L], or None."""

    ends: ArrayOrRef
    positions: ArrayOrRef
    times: ArrayOrRef
    starts: ArrayOrRef
    key_times: ArrayOrRef
    tables: tile.Tables
    q: ArrayOrRef
    k: ArrayOrRef  # [R H, S, 1, A]: a row for each head, as the loads of a tile expect
    v: ArrayOrRef


def default_blocks(queries: int) -> Blocks:
    """Block sizes for this many queries of a row, not timed.

    Compiled for sm_90a they need no register spills.
    """
    rows = min(64, max(16, pl.next_power_of_2(queries)))
    return Blocks(rows, 64, 8 if rows == 64 else 4, 2)


def triton_cached_attention(
    q, k, v, queries: Queries, bias: Bias, options: Options, splits: int = 0
):
    """The attention to the cache, in float32; the arguments are those of `xla_cached_attention`.

    splits: programs that share the keys of a block of queries; 0 = enough to fill a large GPU.
    Products of float32 are made in tf32 on a GPU, unless jax_default_matmul_precision asks for
    float32. In the interpreter it runs slowly and exactly.
    """
    rows, length, heads, _ = q.shape
    room, width = v.shape[2:]
    blocks = Blocks(*options.blocks) if options.blocks else default_blocks(length)
    each = lambda x: None if x is None else jnp.broadcast_to(x, (rows, length)).astype(jnp.int32)
    by_row = lambda x: x.reshape(rows * heads, room, 1, -1)
    time_table = None if bias.time_table is None else bias.time_table[: LAST_BUCKET + 1]
    inputs = Inputs(
        *(each(queries.ends), each(queries.positions), each(bias.query_times)),
        starts=each(queries.starts),
        key_times=None if bias.key_times is None else bias.key_times.astype(jnp.int32),
        tables=tile.Tables(bias.position_table, time_table),
        q=q,
        k=by_row(k),
        v=by_row(v),
    )

    programs = rows * heads * pl.cdiv(length, blocks.query_block)
    key_blocks = pl.cdiv(room, blocks.key_block)
    splits = min(splits or pl.cdiv(PROGRAMS, programs), key_blocks)
    out = jax.ShapeDtypeStruct((splits * rows, length, heads, width), jnp.float32)
    static, per_split = tile.static(options, blocks), pl.cdiv(key_blocks, splits)
    kernel = functools.partial(_kernel, static=static, per_split=per_split)
    name = "hstu_cached_forward"
    parts = tile.launch(kernel, [inputs], out, splits * programs, blocks, options.interpret, name)
    return parts.reshape(splits, rows, length, heads, width).sum(0)


def _kernel(inputs: Inputs, out_ref, *, static: Static, per_split: int):
    query_block, key_block = static.blocks[:2]
    tables, (rows, length, heads, _) = inputs.tables, inputs.q.shape
    room = inputs.k.shape[1]
    program, blocks = pl.program_id(0), pl.cdiv(length, query_block)
    # Heads run next to one another: they share the bias.
    head, rest = program % heads, program // heads
    start, rest = rest % blocks * query_block, rest // blocks
    row, split = rest % rows, rest // rows

    def load(ref, row, start, size, bound, axis) -> ArrayOrRef:
        if ref is None:
            return None
        at = ref.at[row, pl.ds(start, size)]
        inside = start + jnp.arange(size) < bound
        values = plt.load(at) if bound % size == 0 else plt.load(at, mask=inside, other=0)
        return values[:, None] if axis == 0 else values[None, :]

    ends, positions, times, starts = (
        load(ref, row, start, query_block, length, 0) for ref in inputs[:4]
    )
    q = tile.load_vectors(inputs.q, row, start, query_block, head)
    last = jnp.max(ends)
    only = jnp.int32(0)  # the head of a row of the cache

    def visit(n, out):
        at, cache_row = n * key_block, row * heads + head
        index = at + jnp.arange(key_block)
        k = tile.load_vectors(inputs.k, cache_row, at, key_block, only).astype(q.dtype)
        real = index < jnp.minimum(last, room)
        v = tile.load_vectors(inputs.v, cache_row, at, key_block, only, real)

        scores = tile.dot(q, k.T, static) * static.scale
        if tables.position is not None:
            distance = jnp.clip(positions - index[None, :], 0, tables.position.shape[0] - 1)
            scores += plt.load(tables.position.at[distance])
        if tables.time is not None:
            bucket = time_bucket(times - load(inputs.key_times, row, at, key_block, room, 1))
            scores += plt.load(tables.time.at[jnp.minimum(bucket, tables.time.shape[0] - 1)])

        weights = scores * tile.sigmoid(scores, static, q.dtype)
        sees = index[None, :] < ends
        if starts is not None:
            sees &= index[None, :] >= starts
        weights = jnp.where(sees, weights, 0.0)
        return out + tile.dot(weights.astype(q.dtype), v.astype(q.dtype), static)

    first = split * per_split
    stop = jnp.minimum(first + per_split, (last + key_block - 1) // key_block)
    if starts is not None:
        first = jnp.maximum(first, jnp.min(starts) // key_block)
    out = jnp.zeros((query_block, tile.lane_width(inputs.v.shape[3])), jnp.float32)
    out = jax.lax.fori_loop(first, jnp.maximum(first, stop), visit, out)
    place = split * rows + row
    tile.store_vectors(out_ref, place, start, head, out * (1 / static.max_length))
