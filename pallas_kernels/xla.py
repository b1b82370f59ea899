"""HSTU attention in plain XLA: query chunks against the keys that can hold their sequences.

The cost per token is bounded by max_length + CHUNK keys, whatever the row length, and no [L, L]
tensor is stored; of a row that is not much longer than max_length about the causal half of the
pairs is computed. The backward pass recomputes the scores of a chunk once; nothing of size [C, W]
is kept but one byte per pair.

Letters: C queries of a chunk, W keys that it looks at.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from pallas_kernels.arguments import Bias, Mask, Options
from pallas_kernels.masks import LAST_BUCKET, Tokens, allowed_pairs, describe_tokens, time_bucket

CHUNK = 64  # queries per chunk
# Chunks laid out one by one, or stretches of keys that chunks of longer rows share: bounds the size
# of the program.
MAX_UNROLLED = 8
# Code of a pair that does not see each other; the other codes are entries of the time table.
MASKED = 255


class Pairs(NamedTuple):
    """Facts about the pairs of a chunk and its keys that decide their bias and mask."""

    distance: Int[Array, "#R C W"]  # entry of the position table
    codes: UInt8[Array, "R C W"]  # entry of the time table, or MASKED


class Tables(NamedTuple):
    """The bias tables in float32; of one zero where there is none."""

    position: Float[Array, " P"]
    time: Float[Array, " buckets"]


def xla_attention(q, k, v, mask: Mask, bias: Bias, options: Options) -> Float[Array, "R L H V"]:
    """HSTU attention as in `reference_attention`."""
    length = q.shape[1]
    back = options.max_length - 1  # keys before the chunk that its sequences can reach
    if mask.window is not None and mask.targets is None:  # a target reaches back from its history
        back = min(back, mask.window)
    or_zero = lambda table: jnp.zeros(1) if table is None else jnp.float32(table)
    tables = Tables(or_zero(bias.position_table), or_zero(bias.time_table)[: LAST_BUCKET + 1])
    tokens = describe_tokens(mask)

    # Padding may hold NaN, which a weight of 0 would not stop.
    padding = mask.segments[..., None, None] == 0
    q, k, v = (jnp.where(padding, 0, x) for x in (q, k, v))
    query, key = (q, tokens, bias.query_times), (k, v, tokens, bias.key_times)
    attend = functools.partial(_chunk_attention, options=options, window=mask.window)

    chunks = -(-length // CHUNK)
    if chunks <= MAX_UNROLLED:
        outs = []
        for lo in range(0, length, CHUNK):
            hi = min(lo + CHUNK, length)
            outs.append(attend(_slice(query, lo, hi), _slice(key, max(0, lo - back), hi), tables))
        return jnp.where(padding, 0, jnp.concatenate(outs, axis=1))

    # The keys of the near chunks begin at the start of the row; where these are most of the row,
    # groups of chunks share keys that end with the group.
    near = min(chunks, back // CHUNK + 1)
    near = near if 2 * near > chunks else 0
    together = max(1, -(-near // MAX_UNROLLED))
    fill = chunks * CHUNK - length
    ends = [min(last, near) for last in range(together, near + together, together)]
    reached: list[Callable] = [
        lambda lo, end=end: _slice(key, 0, min(length, end * CHUNK)) for end in ends
    ]
    if near < chunks:
        far = _pad(key, back, fill)
        reached.append(lambda lo: _cut(far, lo, back + CHUNK))
    query = _pad(query, 0, fill)

    def branch(keys):  # recomputed, as otherwise each branch keeps what it needs for all chunks
        return jax.checkpoint(lambda lo: attend(_cut(query, lo, CHUNK), keys(lo), tables))

    @jax.checkpoint  # keeps the number of the chunk instead of its keys
    def step(number):
        group = jnp.where(number < near, number // together, len(ends))
        return jax.lax.switch(group, [branch(keys) for keys in reached], number * CHUNK)

    out = jax.lax.map(step, jnp.arange(chunks))
    out = jnp.moveaxis(out, 0, 1).reshape(q.shape[0], chunks * CHUNK, *v.shape[2:])[:, :length]
    return jnp.where(padding, 0, out)


def _chunk_attention(
    query, key, tables: Tables, *, options: Options, window: int | None
) -> Float[Array, "R C H V"]:
    """The attention output of a chunk of queries over the keys that it can reach."""
    q, query_tokens, query_times = query
    k, v, key_tokens, key_times = key
    codes = _pair_codes(query_tokens, key_tokens, query_times, key_times, window, len(tables.time))
    distance = query_tokens.position[:, :, None] - key_tokens.position[:, None, :]
    distance = jnp.clip(distance, 0, len(tables.position) - 1)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(_block(options, q, k, v, tables, Pairs(distance, codes)), 1, 2)


def _pair_codes(
    query: Tokens, key: Tokens, query_times, key_times, window, buckets
) -> UInt8[Array, "R C W"]:
    """The entry of the time table of each pair, or MASKED.

    A loop over a few groups of queries, because XLA does not fuse the body of a loop into its
    users: the CPU backend would evaluate mask and logarithm once per use, without vector
    instructions (about 3x in all).
    """
    groups = math.gcd(query.start.shape[1], 4)

    def group_codes(group):
        query, query_times = jax.tree.map(lambda x: x[:, :, None], group)
        code = 0
        if query_times is not None:
            code = jnp.minimum(time_bucket(query_times - key_times[:, None]), buckets - 1)
        mask = allowed_pairs(query, jax.tree.map(lambda x: x[:, None], key), window)
        return jnp.where(mask, code, MASKED).astype(jnp.uint8)

    split = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0], groups, -1), 1, 0), (query, query_times)
    )
    codes = jnp.moveaxis(jax.lax.map(group_codes, split), 0, 1)
    return codes.reshape(codes.shape[0], -1, codes.shape[-1])


def _scores(scale: float, q, k, tables: Tables, pairs: Pairs) -> Float[Array, "R H C W"]:
    """scale q.k + bias, and about -1e30 for a masked pair: there SiLU and its derivative are 0."""
    lookup = jnp.full(MASKED + 1, -1e30).at[: len(tables.time)].set(tables.time)
    bias = tables.position[pairs.distance] + lookup.at[pairs.codes].get(mode="promise_in_bounds")
    return scale * _dot("rhia,rhja->rhij", q, k) + bias[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _block(options: Options, q, k, v, tables: Tables, pairs: Pairs) -> Float[Array, "R H C V"]:
    scores = _scores(options.scale, q, k, tables, pairs)
    weights = jax.nn.silu(scores) * (1 / options.max_length)
    return _dot("rhij,rhjv->rhiv", weights.astype(v.dtype), v).astype(v.dtype)


def _block_forward(options: Options, *args):
    return _block(options, *args), args


def _block_backward(options: Options, args, d_out):
    q, k, v, tables, pairs = args
    scores = _scores(options.scale, q, k, tables, pairs)
    gate = jax.nn.sigmoid(scores)
    d_out = (d_out * (1 / options.max_length)).astype(v.dtype)

    # Gradients of k and v come out as [.., A, W] and are turned: XLA's CPU matmul is up to 3x
    # faster that way round.
    d_v = _dot("rhij,rhiv->rhvj", (scores * gate).astype(v.dtype), d_out)
    d_scores = _dot("rhiv,rhjv->rhij", d_out, v) * (gate * (1 + scores * (1 - gate)))
    d_bias = d_scores.sum(1)
    d_scores = (options.scale * d_scores).astype(q.dtype)
    d_q = _dot("rhij,rhja->rhia", d_scores, k)
    d_k = _dot("rhij,rhia->rhaj", d_scores, q)

    # A sum for each row, then of the rows: one float32 sum over all pairs, in their order, loses
    # digits.
    rows, size = pairs.codes.shape[0], MASKED + 1
    entries = pairs.codes.astype(jnp.int32) + size * jnp.arange(rows)[:, None, None]
    d_time = jnp.zeros(rows * size).at[entries].add(d_bias, mode="promise_in_bounds")
    d_time = d_time.reshape(rows, size).sum(0)[: len(tables.time)]
    if pairs.distance.shape[0] == 1:  # the same in all rows: sum them before the slow scatter
        d_bias = d_bias.sum(0, keepdims=True)
    d_position = jnp.zeros_like(tables.position).at[pairs.distance].add(d_bias)

    d_k, d_v = (jnp.swapaxes(x, 2, 3).astype(x_in.dtype) for x, x_in in ((d_k, k), (d_v, v)))
    return d_q.astype(q.dtype), d_k, d_v, Tables(d_position, d_time), None


_block.defvjp(_block_forward, _block_backward)

_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _slice(tree, lo: int, hi: int):
    return jax.tree.map(lambda x: x[:, lo:hi], tree)


def _cut(tree, lo: Int[Array, ""], length: int):
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, lo, length, 1), tree)


def _pad(tree, before: int, after: int):
    """Pad axis 1 of each leaf with padding tokens.

    Row indices go on counting, so that distances stay right.
    """

    def pad(x, value=0):
        return jnp.pad(
            x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2), constant_values=value
        )

    def pad_tokens(tokens):
        index = jnp.arange(-before, tokens.index.shape[1] + after)[None]
        position = index if tokens.position is tokens.index else pad(tokens.position)
        rest = jax.tree.map(pad, tokens)
        return rest._replace(start=pad(tokens.start, -1), index=index, position=position)

    def is_tokens(x):
        return isinstance(x, Tokens)

    return jax.tree.map(
        lambda x: pad_tokens(x) if is_tokens(x) else pad(x), tree, is_leaf=is_tokens
    )
