"""The keys that each token sees, as one interval, and the key blocks that each query block visits.

The mask rules of `masks.py` give every query a contiguous run of keys plus itself, so a kernel
needs two integers per query to mask a tile, and tiles that no query sees are known before the
kernel starts.

Letters: R rows, L tokens in a row, Q blocks of queries, K blocks of keys.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from pallas_kernels.arguments import Mask
from pallas_kernels.masks import describe_tokens


class VisibleKeys(NamedTuple):
    """The keys first_i <= j < end_i that query i sees, beside itself; leaves are int32.

    A query is a target where end_i <= i: it sees nothing between its history and itself. Padding
    sees nothing.

    Attributes:
      first: [R, L]; L at padding.
      end: [R, L]; 0 at padding.
      position: effective positions [R, L]; None without targets, where the distance of two tokens
        is that of their indices.
      target_position: [R, L], the effective position of the targets of a token's sequence; None
        without targets.
    """

    first: Int[Array, "R L"]
    end: Int[Array, "R L"]
    position: Int[Array, "R L"] | None
    target_position: Int[Array, "R L"] | None


def visible_keys(mask: Mask) -> VisibleKeys:
    """The keys that each token sees under the rules of `masks.allowed_pairs`."""
    segments, targets, window = mask
    rows, length = segments.shape
    tokens = describe_tokens(mask)
    index = jnp.broadcast_to(tokens.index, segments.shape)
    start = jnp.maximum(tokens.start, 0)

    end, nearest = index + 1, index  # nearest: the last key that counts as a distance of 0
    position = target_position = None
    if targets is not None:
        last = jnp.concatenate([segments[:, 1:] != segments[:, :-1], jnp.ones((rows, 1), bool)], 1)
        sequence_end = jax.lax.cummin(jnp.where(last, index, length - 1), axis=1, reverse=True) + 1
        history_end = sequence_end - _per_sequence(targets & (segments != 0), start, sequence_end)
        end, nearest = (jnp.where(targets, history_end, x) for x in (end, nearest))
        position = tokens.position
        target_position = jnp.take_along_axis(position, sequence_end - 1, axis=1)

    first = start if window is None else jnp.maximum(start, nearest - window)
    padding = tokens.start < 0
    first, end = jnp.where(padding, length, first), jnp.where(padding, 0, end)
    to_int = lambda x: x.astype(jnp.int32)
    return VisibleKeys(*jax.tree.map(to_int, (first, end, position, target_position)))


def _per_sequence(
    flags: Bool[Array, "R L"], start: Int[Array, "R L"], end: Int[Array, "R L"]
) -> Int[Array, "R L"]:
    """The number of flagged tokens in each token's sequence, start <= i < end."""
    count = jnp.cumsum(flags, axis=1)
    before = jnp.take_along_axis(count, start, axis=1) - jnp.take_along_axis(flags, start, axis=1)
    return jnp.take_along_axis(count, end - 1, axis=1) - before


def key_block_ranges(visible: VisibleKeys, query_block: int, key_block: int) -> Int[Array, "R Q 4"]:
    """(a, b, c, d) per block of queries, which visits the key blocks a <= n < b and c <= n < d.

    The second range, with b <= c, holds the diagonal blocks of targets, which see themselves but
    not the targets before them; it is empty for other queries. Both are empty for a block of
    padding.
    """
    length = visible.first.shape[1]
    fill = -length % query_block
    in_blocks = lambda x, value: jnp.pad(x, ((0, 0), (0, fill)), constant_values=value).reshape(
        x.shape[0], -1, query_block
    )
    first, end = in_blocks(visible.first, length).min(2), in_blocks(visible.end, 0).max(2)
    some = first < length
    index = jnp.arange(length + fill).reshape(-1, query_block)
    real = in_blocks(visible.first, length) < length
    last = jnp.where(real, index, -1).max(2)

    a = jnp.where(some, first // key_block, 0)
    b = jnp.maximum(a, jnp.where(some, -(-end // key_block), 0))
    c = jnp.maximum(b, index[:, 0] // key_block)
    d = jnp.maximum(c, -(-(last + 1) // key_block))
    return jnp.stack([a, b, c, d], -1).astype(jnp.int32)


def query_block_ranges(key_ranges: Int[Array, "R Q 4"], num_key_blocks: int) -> Int[Array, "R K 2"]:
    """(a, b) per block of keys: the query blocks that visit it are among a <= n < b.

    (0, 0) where none does.
    """
    a, b, c, d = (key_ranges[:, :, None, n] for n in range(4))
    key_block = jnp.arange(num_key_blocks)
    visits = ((a <= key_block) & (key_block < b)) | ((c <= key_block) & (key_block < d))
    some = visits.any(1)
    first = jnp.argmax(visits, axis=1)
    end = visits.shape[1] - jnp.argmax(visits[:, ::-1], axis=1)
    return jnp.stack([jnp.where(some, first, 0), jnp.where(some, end, 0)], -1).astype(jnp.int32)


def longest_first(work: Int[Array, "R N"]) -> Int[Array, " RN"]:
    """r * N + n of all blocks by falling work, so that the last blocks to run are short ones."""
    return jnp.argsort(-work.reshape(-1), stable=True).astype(jnp.int32)
