"""Which token may attend to which, and how far apart two tokens are, on packed rows.

Both are functions of a few integers per token, so that every implementation builds its own tile of
the mask from slices of these arrays and no [L, L] array is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.arguments import Bias, Mask

LAST_BUCKET = 128  # largest time bucket; a table of all buckets has one entry more


class Tokens(NamedTuple):
    """Facts about each token that decide mask and position bias; leaves are [R, L] or [1, L]."""

    start: Int[Array, "..."]  # row index where the token's sequence starts, -1 at padding
    index: Int[Array, "..."]  # row index of the token
    position: Int[Array, "..."]  # effective position: all targets of a sequence share one
    target: Bool[Array, "..."] | None  # candidate tokens; None = there are none


def describe_tokens(mask: Mask) -> Tokens:
    """Facts about the tokens of packed rows.

    Without targets the effective position is the row index itself: only differences inside a
    sequence are ever used, and so they are known at compile time.
    """
    segments, targets, _ = mask
    rows, length = segments.shape
    index = jnp.arange(length)[None]
    changes = segments[:, 1:] != segments[:, :-1]
    first = jnp.concatenate([jnp.ones((rows, 1), bool), changes], 1)
    start = jax.lax.cummax(jnp.where(first, index, 0), axis=1)

    position = index
    if targets is not None:
        steps = jnp.cumsum(~first & ~(targets & jnp.roll(targets, 1, axis=1)), axis=1)
        position = steps - jnp.take_along_axis(steps, start, axis=1)
    return Tokens(jnp.where(segments == 0, -1, start), index, position, targets)


def allowed_pairs(query: Tokens, key: Tokens, window: int | None = None) -> Bool[Array, "..."]:
    """True where the query token sees the key token.

    The leaves of `query` and `key` broadcast, as [R, C, 1] and [R, 1, W].

    A token sees itself and the smaller effective positions of its own sequence, hence targets see
    the history and themselves only; `window` bounds the distance of the two positions. The GPU
    kernels take the same rule as an interval of keys: `visible_keys` has to follow it.
    """
    if query.target is None:
        allowed = query.index >= key.index
    else:
        allowed = (query.index == key.index) | (query.position > key.position)
    if window is not None:
        allowed &= query.position - key.position <= window
    return allowed & (query.start == key.start) & (key.start >= 0)


def time_bucket(seconds: Int[Array, "..."]) -> Int[Array, "..."]:
    """min(trunc(ln(max(|seconds|, 1)) / 0.301), 128) as int32, computed in float32.

    >>> time_bucket(jnp.array([0, 1, 60, 3600, 86400])).tolist()
    [0, 0, 13, 27, 37]

    The sign is ignored. Source: the bucketisation of the research implementation of HSTU
    (arXiv:2402.17152).
    """
    magnitude = jnp.maximum(jnp.abs(seconds), 1).astype(jnp.float32)
    return jnp.minimum((jnp.log(magnitude) / 0.301).astype(jnp.int32), LAST_BUCKET)


def pair_bias(query: Tokens, key: Tokens, bias: Bias) -> Float[Array, "..."] | float:
    """Position bias plus time bias of all pairs [R, L, L], in at least float32.

    Distances and buckets are clipped to the tables.
    """
    wide = lambda table: table.astype(jnp.promote_types(table.dtype, jnp.float32))
    total = 0.0
    if bias.position_table is not None:
        distance = jnp.clip(query.position - key.position, 0, len(bias.position_table) - 1)
        total = total + wide(bias.position_table)[distance]
    if bias.time_table is not None:
        assert bias.query_times is not None and bias.key_times is not None
        seconds = bias.query_times[:, :, None] - bias.key_times[:, None, :]
        bucket = jnp.minimum(time_bucket(seconds), len(bias.time_table) - 1)
        total = total + wide(bias.time_table)[bucket]
    return total
