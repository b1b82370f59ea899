"""Attention to cached keys and values as a Pallas kernel on the Triton backend, and in its interpreter on any device.

A program computes one block of queries of one head against a part of the keys. Where queries are few, as when one event
is appended, the keys are divided among programs: without a softmax their results need only be added.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.block_sizes import Blocks
from pallas_kernels.masks import LAST_BUCKET, time_bucket
from pallas_kernels.triton import tile
from pallas_kernels.triton.tile import Static

PROGRAMS = 264  # enough of them for two on each of the 132 processors of an H100


class Queries(NamedTuple):
    """What the kernel needs to know of the queries: int32 [R, L], or None."""

    ends: Any
    positions: Any
    times: Any


def default_blocks(queries: int) -> Blocks:
    """Returns block sizes for so many queries of a row; compiled for sm_90a they need no register spills; not timed."""
    rows = min(64, max(16, pl.next_power_of_2(queries)))
    return Blocks(rows, 64, 8 if rows == 64 else 4, 2)


def triton_cached_attention(
    q, k, v, ends, position_table, time_table, positions, query_times, key_times,
    *, max_length: int, scale: float, interpret: bool = False, blocks: Blocks | None = None, splits: int = 0,
):  # fmt: skip
    """Returns the attention to the cache, in float32; arguments as in `hstu_cached_attention`.

    interpret: runs on any device, slowly and exactly. blocks: None = by `default_blocks`.
    splits: programs that share the keys of a block of queries; 0 = as many as it takes to fill a large GPU.
    Products of float32 are made in tf32 on a GPU, unless jax_default_matmul_precision asks for float32.
    """
    rows, length, heads, _ = q.shape
    room, width = v.shape[2:]
    blocks = blocks or default_blocks(length)
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    static = Static(
        scale, max_length, blocks, False, interpret, precision in ("highest", "float32")
    )
    each = lambda x: None if x is None else jnp.broadcast_to(x, (rows, length)).astype(jnp.int32)
    queries = Queries(
        each(ends),
        None if position_table is None else each(positions),
        None if time_table is None else each(query_times),
    )
    key_times = None if time_table is None else key_times.astype(jnp.int32)
    tables = tile.Tables(
        position_table, None if time_table is None else time_table[: LAST_BUCKET + 1]
    )
    by_row = lambda x: x.reshape(
        rows * heads, room, 1, -1
    )  # a row for each head: what the loads of a tile expect
    programs, key_blocks = (
        rows * heads * pl.cdiv(length, blocks.query_block),
        pl.cdiv(room, blocks.key_block),
    )
    splits = min(splits or pl.cdiv(PROGRAMS, programs), key_blocks)
    out = jax.ShapeDtypeStruct((splits * rows, length, heads, width), jnp.float32)
    kernel = functools.partial(_kernel, static=static, per_split=pl.cdiv(key_blocks, splits))
    args = queries, key_times, tables, q, by_row(k), by_row(v)
    parts = tile.launch(
        kernel, args, out, splits * programs, blocks, interpret, "hstu_cached_forward"
    )
    return parts.reshape(splits, rows, length, heads, width).sum(0)


def _kernel(
    queries, key_times, tables, q_ref, k_ref, v_ref, out_ref, *, static: Static, per_split: int
):
    query_block, key_block = static.blocks[:2]
    rows, length, heads, _ = q_ref.shape
    room = k_ref.shape[1]
    program, blocks = pl.program_id(0), pl.cdiv(length, query_block)
    head, rest = (
        program % heads,
        program // heads,
    )  # heads run next to one another: they share the bias
    start, rest = rest % blocks * query_block, rest // blocks
    row, split = rest % rows, rest // rows

    def load(ref, row, start, size, bound, axis) -> Any:
        if ref is None:
            return None
        at = ref.at[row, pl.ds(start, size)]
        inside = start + jnp.arange(size) < bound
        values = plt.load(at) if bound % size == 0 else plt.load(at, mask=inside, other=0)
        return values[:, None] if axis == 0 else values[None, :]

    ends, positions, times = (load(ref, row, start, query_block, length, 0) for ref in queries)
    q = tile.load_vectors(q_ref, row, start, query_block, head)
    last = jnp.max(ends)
    only = jnp.int32(0)  # the head of a row of the cache

    def visit(n, out):
        at = n * key_block
        index = at + jnp.arange(key_block)
        k = tile.load_vectors(k_ref, row * heads + head, at, key_block, only).astype(q.dtype)
        v = tile.load_vectors(
            v_ref, row * heads + head, at, key_block, only, index < jnp.minimum(last, room)
        )
        scores = tile.dot(q, k.T, static) * static.scale
        if tables.position is not None:
            distance = jnp.clip(positions - index[None, :], 0, tables.position.shape[0] - 1)
            scores += plt.load(tables.position.at[distance])
        if tables.time is not None:
            bucket = time_bucket(times - load(key_times, row, at, key_block, room, 1))
            scores += plt.load(tables.time.at[jnp.minimum(bucket, tables.time.shape[0] - 1)])
        weights = scores * tile.sigmoid(scores, static, q.dtype)
        weights = jnp.where(index[None, :] < ends, weights, 0.0)
        return out + tile.dot(weights.astype(q.dtype), v.astype(q.dtype), static)

    first = split * per_split
    stop = jnp.minimum(first + per_split, (last + key_block - 1) // key_block)
    out = jnp.zeros((query_block, tile.lane_width(v_ref.shape[3])), jnp.float32)
    out = jax.lax.fori_loop(first, jnp.maximum(first, stop), visit, out)
    tile.store_vectors(out_ref, split * rows + row, start, head, out * (1 / static.max_length))
