"""Gradients of HSTU attention in q, k and v on the Triton backend; the scores are computed anew in every kernel.

With S the scores, g = sigmoid(S) and N the normaliser: d_S = (d_out V^T) g (1 + S (1 - g)) / N for visible pairs, then
d_q = scale d_S K, d_k = scale d_S^T Q and d_v = (S g)^T d_out / N. N and scale are applied once, at the end.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.table_gradients import position_gradient
from pallas_kernels.triton import tile
from pallas_kernels.triton.tables import table_sums
from pallas_kernels.triton.tile import Static, Tables, Tokens
from pallas_kernels.visible_keys import VisibleKeys, longest_first, query_block_ranges


def attention_gradients(static: Static, q, k, v, tables: Tables, tokens: Tokens, d_out):
    """Returns the gradients of q, k, v and the tables."""
    rows, length, heads, _ = q.shape
    sums = jax.ShapeDtypeStruct((rows, heads, length), jnp.float32)
    has_rows = tables.position is not None and static.contexts
    has_columns = tables.position is not None and tokens.target_position is not None
    data = tokens, tables, q, k, v, d_out

    order, key_ranges = tile.query_programs(tokens, static.blocks)
    kernel = functools.partial(_query_kernel, static=static)
    outputs = jax.ShapeDtypeStruct(q.shape, q.dtype), sums if has_rows else None
    args = order, key_ranges, *data
    d_q, row_sums = tile.launch(
        kernel, args, outputs, order.size * heads, static.blocks, static.interpret, "hstu_d_q"
    )

    query_ranges = query_block_ranges(key_ranges, -(-length // static.blocks.key_block))
    order = longest_first(query_ranges[..., 1] - query_ranges[..., 0])
    kernel = functools.partial(_key_kernel, static=static)
    outputs = (
        *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)),
        sums if has_columns else None,
    )
    args = order, query_ranges, *data
    d_k, d_v, column_sums = tile.launch(
        kernel, args, outputs, order.size * heads, static.blocks, static.interpret, "hstu_d_k_d_v"
    )

    if tables == (None, None):
        return d_q, d_k, d_v, tables
    diagonals, d_time = table_sums(static, *data)
    d_position = None
    if tables.position is not None:
        assert diagonals is not None
        over_heads = lambda x: None if x is None else x.sum(1) / static.max_length
        d_position = position_gradient(
            diagonals,
            over_heads(row_sums),
            over_heads(column_sums),
            VisibleKeys(*tokens[:4]),
            len(tables.position),
        )
    return d_q, d_k, d_v, Tables(d_position, d_time)


def _query_kernel(
    order, ranges, tokens, tables, q_ref, k_ref, v_ref, d_out_ref, *outputs, static: Static
):
    d_q_ref, row_sums_ref = outputs
    query_block, key_block = static.blocks[:2]
    row, block, head = tile.program_block(order, ranges.shape[1], q_ref.shape[2])
    start = block * query_block
    query = tile.load_tokens(tokens, row, start, query_block, axis=0)
    q = tile.load_vectors(q_ref, row, start, query_block, head)
    d_out = tile.load_vectors(d_out_ref, row, start, query_block, head)

    def visit(n, carry):
        d_q, row_sums = carry
        start = n * key_block
        k = tile.load_vectors(
            k_ref, row, start, key_block, head, tile.real_tokens(tokens, row, start, key_block)
        )
        v = tile.load_vectors(v_ref, row, start, key_block, head)
        key = tile.load_tokens(tokens, row, start, key_block, axis=1)
        scores = tile.add_bias(tile.dot(q, k.T, static) * static.scale, query, key, tables)
        _, d_scores = tile.score_gradient(scores, tile.dot(d_out, v.T, static), static, q.dtype)
        d_scores = jnp.where(tile.visible_pairs(query, key, tokens), d_scores, 0.0)
        if row_sums is not None:
            row_sums += jnp.sum(jnp.where(tile.row_pairs(query, key), d_scores, 0.0), axis=1)
        return d_q + tile.dot(d_scores.astype(k.dtype), k, static), row_sums

    d_q = jnp.zeros((query_block, tile.lane_width(q_ref.shape[3])), jnp.float32)
    row_sums = None if row_sums_ref is None else jnp.zeros(query_block, jnp.float32)
    d_q, row_sums = tile.for_key_blocks(ranges, row, block, tokens, visit, (d_q, row_sums))
    tile.store_vectors(d_q_ref, row, start, head, d_q * (static.scale / static.max_length))
    if row_sums is not None:
        tile.store_sums(row_sums_ref, row, start, head, row_sums)


def _key_kernel(
    order, ranges, tokens, tables, q_ref, k_ref, v_ref, d_out_ref, *outputs, static: Static
):
    """Tiles are [keys, queries] here."""
    d_k_ref, d_v_ref, column_sums_ref = outputs
    query_block, key_block = static.blocks[:2]
    row, block, head = tile.program_block(order, ranges.shape[1], q_ref.shape[2])
    start = block * key_block
    key = tile.load_tokens(tokens, row, start, key_block, axis=0)
    k = tile.load_vectors(k_ref, row, start, key_block, head)
    v = tile.load_vectors(v_ref, row, start, key_block, head)

    def visit(n, carry):
        d_k, d_v, column_sums = carry
        start = n * query_block
        real = tile.real_tokens(tokens, row, start, query_block)
        q = tile.load_vectors(q_ref, row, start, query_block, head, real)
        d_out = tile.load_vectors(d_out_ref, row, start, query_block, head, real)
        query = tile.load_tokens(tokens, row, start, query_block, axis=1)
        scores = tile.add_bias(tile.dot(k, q.T, static) * static.scale, query, key, tables)
        weights, d_scores = tile.score_gradient(
            scores, tile.dot(v, d_out.T, static), static, q.dtype
        )
        sees = tile.visible_pairs(query, key, tokens)
        d_scores = jnp.where(sees, d_scores, 0.0)
        d_v += tile.dot(jnp.where(sees, weights, 0.0).astype(d_out.dtype), d_out, static)
        d_k += tile.dot(d_scores.astype(q.dtype), q, static)
        if column_sums is not None:
            column_sums += jnp.sum(jnp.where(tile.column_pairs(query), d_scores, 0.0), axis=1)
        return d_k, d_v, column_sums

    zeros = lambda ref: jnp.zeros((key_block, tile.lane_width(ref.shape[3])), jnp.float32)
    column_sums = None if column_sums_ref is None else jnp.zeros(key_block, jnp.float32)
    a, b = ranges[row, block, 0], ranges[row, block, 1]
    d_k, d_v, column_sums = jax.lax.fori_loop(
        a, b, visit, (zeros(k_ref), zeros(v_ref), column_sums)
    )
    tile.store_vectors(d_k_ref, row, start, head, d_k * (static.scale / static.max_length))
    tile.store_vectors(d_v_ref, row, start, head, d_v * (1 / static.max_length))
    if column_sums is not None:
        tile.store_sums(column_sums_ref, row, start, head, column_sums)
