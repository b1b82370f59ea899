"""HSTU attention as Pallas kernels on the Triton backend: NVIDIA GPUs since Ampere, and any device in the interpreter.

A program computes one block of queries of one head and visits the key blocks that its queries see. Both biases are
gathered from their tables inside the kernel; nothing of size [L, L] is stored.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import block_sizes, dispatch
from pallas_kernels.block_sizes import Blocks
from pallas_kernels.masks import LAST_BUCKET
from pallas_kernels.triton import tile
from pallas_kernels.triton.backward import attention_gradients
from pallas_kernels.triton.tile import Static, Tables, Tokens
from pallas_kernels.visible_keys import visible_keys


def default_blocks(a: int, v: int, dtype: str) -> Blocks:
    """Returns block sizes for head widths a of q and v of v.

    Compiled for sm_90a the named shapes spill no registers; float32 heads wider than 64, which none of them has, do.
    """
    lanes = tile.lane_width(max(a, v))
    if dtype == "float32":
        return Blocks(64, 32, 8, 2) if lanes == 64 else Blocks(32, 32, 8, 1)
    return Blocks(64, 64, 8, 2) if lanes <= 64 else Blocks(64, 32, 8, 2)


def triton_attention(
    q: Float[Array, "R L H A"],
    k: Float[Array, "R L H A"],
    v: Float[Array, "R L H V"],
    segments: Int[Array, "R L"],
    *,
    max_length: int,
    scale: float = 1.0,
    position_table: Float[Array, " P"] | None = None,
    time_table: Float[Array, " buckets"] | None = None,
    query_times: Int[Array, "R L"] | None = None,
    key_times: Int[Array, "R L"] | None = None,
    targets: Bool[Array, "R L"] | None = None,
    contexts: Bool[Array, "R L"] | None = None,
    window: int | None = None,
    full_window_tail: int = 0,
    interpret: bool = False,
    blocks: Blocks | None = None,
) -> Float[Array, "R L H V"]:
    """Returns HSTU attention as `reference_attention` does; arguments as in `pallas_kernels.hstu_attention`.

    interpret: runs on any device, slowly and exactly. blocks: None = the shipped block sizes.
    Products of float32 are made in tf32 on a GPU, unless jax_default_matmul_precision asks for float32.
    Results and gradients, those of the tables included, are the same bit for bit in every run.
    """
    if blocks is None:
        kind = dispatch.current_device().kind
        blocks = Blocks(
            *block_sizes.choose(
                "pallas_triton", q.shape[3], v.shape[3], q.shape[1], v.dtype.name, kind
            )
        )
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    exact = precision in ("highest", "float32")
    if time_table is None:
        query_times = key_times = None
    visible = visible_keys(
        segments, targets, contexts, window=window, full_window_tail=full_window_tail
    )
    tokens = Tokens(*visible, query_times, key_times)
    position = None if position_table is None else position_table.astype(jnp.float32)
    time = None if time_table is None else time_table[: LAST_BUCKET + 1].astype(jnp.float32)
    static = Static(scale, max_length, blocks, contexts is not None, interpret, exact)
    return _attention(static, q, k, v, Tables(position, time), tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static: Static, q, k, v, tables: Tables, tokens: Tokens):
    order, ranges = tile.query_programs(tokens, static.blocks)
    kernel = functools.partial(_forward_kernel, static=static)
    out = jax.ShapeDtypeStruct(v.shape, v.dtype)
    programs = order.size * q.shape[2]
    args = order, ranges, tokens, tables, q, k, v
    return tile.launch(kernel, args, out, programs, static.blocks, static.interpret, "hstu_forward")


def _attention_forward(static: Static, *args):
    return _attention(static, *args), args


def _attention_backward(static: Static, args, d_out):
    q, k, v, tables, tokens = args
    return *attention_gradients(static, q, k, v, tables, tokens, d_out), None


_attention.defvjp(_attention_forward, _attention_backward)


def _forward_kernel(order, ranges, tokens, tables, q_ref, k_ref, v_ref, out_ref, *, static: Static):
    query_block, key_block = static.blocks[:2]
    row, block, head = tile.program_block(order, ranges.shape[1], q_ref.shape[2])
    start = block * query_block
    query = tile.load_tokens(tokens, row, start, query_block, axis=0)
    q = tile.load_vectors(q_ref, row, start, query_block, head)

    def visit(n, out):
        start = n * key_block
        k = tile.load_vectors(k_ref, row, start, key_block, head)
        v = tile.load_vectors(
            v_ref, row, start, key_block, head, tile.real_tokens(tokens, row, start, key_block)
        )
        key = tile.load_tokens(tokens, row, start, key_block, axis=1)
        scores = tile.add_bias(tile.dot(q, k.T, static) * static.scale, query, key, tables)
        weights = scores * tile.sigmoid(scores, static, v.dtype)
        weights = jnp.where(tile.visible_pairs(query, key, tokens), weights, 0.0)
        return out + tile.dot(weights.astype(v.dtype), v, static)

    out = jnp.zeros((query_block, tile.lane_width(v_ref.shape[3])), jnp.float32)
    out = tile.for_key_blocks(ranges, row, block, tokens, visit, out)
    tile.store_vectors(out_ref, row, start, head, out * (1 / static.max_length))
