"""Gradients of HSTU attention in q, k and v on the Triton backend.

Every kernel recomputes the scores. With S the scores, g = sigmoid(S) and N the normaliser: d_S =
(d_out V^T) g (1 + S (1 - g)) / N for visible pairs, then d_q = scale d_S K, d_k = scale d_S^T Q and
d_v = (S g)^T d_out / N. N and scale are applied once, at the end.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.table_gradients import position_gradient
from pallas_kernels.triton import tile
from pallas_kernels.triton.tables import table_sums
from pallas_kernels.triton.tile import Inputs, Static, Tables, Work
from pallas_kernels.visible_keys import VisibleKeys, longest_first, query_block_ranges


def attention_gradients(static: Static, inputs: Inputs):
    """The gradients of q, k, v and the tables."""
    tokens, tables, q, k, v, _ = inputs
    rows, length, heads, _ = q.shape
    blocks, interpret = static.blocks, static.interpret
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)

    work = tile.query_programs(tokens, blocks)
    kernel = functools.partial(_query_kernel, static=static)
    programs = work.order.size * heads
    d_q = tile.launch(kernel, (work, inputs), like(q), programs, blocks, interpret, "hstu_d_q")

    ranges = query_block_ranges(work.ranges, -(-length // blocks.key_block))
    work = Work(longest_first(ranges[..., 1] - ranges[..., 0]), ranges)
    kernel = functools.partial(_key_kernel, static=static)
    programs = work.order.size * heads
    has_columns = tables.position is not None and tokens.target_position is not None
    sums = jax.ShapeDtypeStruct((rows, heads, length), jnp.float32) if has_columns else None
    outputs = like(k), like(v), sums
    d_k, d_v, column_sums = tile.launch(
        kernel, (work, inputs), outputs, programs, blocks, interpret, "hstu_d_k_d_v"
    )

    if tables == (None, None):
        return d_q, d_k, d_v, tables
    diagonals, d_time = table_sums(static, inputs)
    d_position = None
    if tables.position is not None:
        assert diagonals is not None
        if column_sums is not None:
            column_sums = column_sums.sum(1) / static.max_length
        visible = VisibleKeys(*tokens[:4])
        d_position = position_gradient(diagonals, column_sums, visible, len(tables.position))
    return d_q, d_k, d_v, Tables(d_position, d_time)


def _query_kernel(work: Work, inputs: Inputs, d_q_ref, *, static: Static):
    tokens, tables, q_ref, k_ref, v_ref, d_out_ref = inputs
    query_block, key_block = static.blocks[:2]
    row, block, head = tile.program_block(work, q_ref.shape[2])
    start = block * query_block
    query = tile.load_tokens(tokens, row, start, query_block, axis=0)
    q = tile.load_vectors(q_ref, row, start, query_block, head)
    d_out = tile.load_vectors(d_out_ref, row, start, query_block, head)

    def visit(n, d_q):
        start = n * key_block
        real = tile.real_tokens(tokens, row, start, key_block)
        k = tile.load_vectors(k_ref, row, start, key_block, head, real)
        v = tile.load_vectors(v_ref, row, start, key_block, head)
        key = tile.load_tokens(tokens, row, start, key_block, axis=1)

        scores = tile.add_bias(tile.dot(q, k.T, static) * static.scale, query, key, tables)
        _, d_scores = tile.score_gradient(scores, tile.dot(d_out, v.T, static), static, q.dtype)
        d_scores = jnp.where(tile.visible_pairs(query, key, tokens), d_scores, 0.0)
        return d_q + tile.dot(d_scores.astype(k.dtype), k, static)

    d_q = jnp.zeros((query_block, tile.lane_width(q_ref.shape[3])), jnp.float32)
    d_q = tile.for_key_blocks(work.ranges, row, block, tokens, visit, d_q)
    tile.store_vectors(d_q_ref, row, start, head, d_q * (static.scale / static.max_length))


def _key_kernel(work: Work, inputs: Inputs, d_k_ref, d_v_ref, column_sums_ref, *, static: Static):
    """Tiles are [keys, queries] here."""
    tokens, tables, q_ref, k_ref, v_ref, d_out_ref = inputs
    query_block, key_block = static.blocks[:2]
    row, block, head = tile.program_block(work, q_ref.shape[2])
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
        d_weights = tile.dot(v, d_out.T, static)
        weights, d_scores = tile.score_gradient(scores, d_weights, static, q.dtype)
        sees = tile.visible_pairs(query, key, tokens)
        d_scores = jnp.where(sees, d_scores, 0.0)

        d_v += tile.dot(jnp.where(sees, weights, 0.0).astype(d_out.dtype), d_out, static)
        d_k += tile.dot(d_scores.astype(q.dtype), q, static)
        if column_sums is not None:
            column_sums += jnp.sum(jnp.where(tile.of_targets(query), d_scores, 0.0), axis=1)
        return d_k, d_v, column_sums

    zeros = lambda ref: jnp.zeros((key_block, tile.lane_width(ref.shape[3])), jnp.float32)
    column_sums = None if column_sums_ref is None else jnp.zeros(key_block, jnp.float32)
    a, b = work.ranges[row, block, 0], work.ranges[row, block, 1]
    carry = zeros(k_ref), zeros(v_ref), column_sums
    d_k, d_v, column_sums = jax.lax.fori_loop(a, b, visit, carry)

    tile.store_vectors(d_k_ref, row, start, head, d_k * (static.scale / static.max_length))
    tile.store_vectors(d_v_ref, row, start, head, d_v * (1 / static.max_length))
    if column_sums is not None:
        tile.store_sums(column_sums_ref, row, start, head, column_sums)
