"""HSTU attention as Pallas kernels on the Triton backend: NVIDIA GPUs since Ampere.

Runs in the interpreter on any device. A program computes one block of queries of one head and
visits the key blocks that its queries see. Both biases are gathered from their tables inside the
kernel; nothing of size [L, L] is stored.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import block_sizes
from pallas_kernels.arguments import Bias, Mask, Options
from pallas_kernels.block_sizes import Blocks
from pallas_kernels.masks import LAST_BUCKET
from pallas_kernels.triton import tile
from pallas_kernels.triton.backward import attention_gradients
from pallas_kernels.triton.tile import Inputs, Static, Tables, Tokens, Work
from pallas_kernels.visible_keys import visible_keys


def default_blocks(a: int, v: int, dtype: str) -> Blocks:
    """Block sizes for head widths a of q and v of v.

    Compiled for sm_90a the named shapes spill no registers; float32 heads wider than 64, which none
    of them has, do.
    """
    lanes = tile.lane_width(max(a, v))
    if dtype == "float32":
        return Blocks(64, 32, 8, 2) if lanes == 64 else Blocks(32, 32, 8, 1)
    return Blocks(64, 64, 8, 2) if lanes <= 64 else Blocks(64, 32, 8, 2)


def triton_attention(q, k, v, mask: Mask, bias: Bias, options: Options) -> Float[Array, "R L H V"]:
    """HSTU attention as in `reference_attention`.

    Products of float32 are made in tf32 on a GPU, unless jax_default_matmul_precision asks for
    float32. Results and gradients, those of the tables included, are the same bit for bit in every
    run. In the interpreter it runs slowly and exactly.
    """
    blocks = options.blocks
    if blocks is None:
        found = block_sizes.measured(block_sizes.key_of("pallas_triton", q, v))
        default = default_blocks(q.shape[3], v.shape[3], v.dtype.name)
        blocks = Blocks(**found) if found else default
    tokens = Tokens(*visible_keys(mask), bias.query_times, bias.key_times)
    position, time = bias.position_table, bias.time_table
    position = None if position is None else position.astype(jnp.float32)
    time = None if time is None else time[: LAST_BUCKET + 1].astype(jnp.float32)
    static = tile.static(options, Blocks(*blocks))
    return _attention(static, q, k, v, Tables(position, time), tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static: Static, q, k, v, tables: Tables, tokens: Tokens):
    work = tile.query_programs(tokens, static.blocks)
    kernel = functools.partial(_forward_kernel, static=static)
    out = jax.ShapeDtypeStruct(v.shape, v.dtype)
    args = work, Inputs(tokens, tables, q, k, v)
    programs = work.order.size * q.shape[2]
    return tile.launch(kernel, args, out, programs, static.blocks, static.interpret, "hstu_forward")


def _attention_forward(static: Static, *args):
    return _attention(static, *args), args


def _attention_backward(static: Static, args, d_out):
    q, k, v, tables, tokens = args
    return *attention_gradients(static, Inputs(tokens, tables, q, k, v, d_out)), None


_attention.defvjp(_attention_forward, _attention_backward)


def _forward_kernel(work: Work, inputs: Inputs, out_ref, *, static: Static):
    tokens, tables, q_ref, k_ref, v_ref, _ = inputs
    query_block, key_block = static.blocks[:2]
    row, block, head = tile.program_block(work, q_ref.shape[2])
    start = block * query_block
    query = tile.load_tokens(tokens, row, start, query_block, axis=0)
    q = tile.load_vectors(q_ref, row, start, query_block, head)

    def visit(n, out):
        start = n * key_block
        k = tile.load_vectors(k_ref, row, start, key_block, head)
        real = tile.real_tokens(tokens, row, start, key_block)
        v = tile.load_vectors(v_ref, row, start, key_block, head, real)
        key = tile.load_tokens(tokens, row, start, key_block, axis=1)

        scores = tile.add_bias(tile.dot(q, k.T, static) * static.scale, query, key, tables)
        weights = scores * tile.sigmoid(scores, static, v.dtype)
        weights = jnp.where(tile.visible_pairs(query, key, tokens), weights, 0.0)
        return out + tile.dot(weights.astype(v.dtype), v, static)

    out = jnp.zeros((query_block, tile.lane_width(v_ref.shape[3])), jnp.float32)
    out = tile.for_key_blocks(work.ranges, row, block, tokens, visit, out)
    tile.store_vectors(out_ref, row, start, head, out * (1 / static.max_length))
