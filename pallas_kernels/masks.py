"""Which token may attend to which, and how far apart two tokens are, on packed rows.

Both are functions of a few integers per token, so that every implementation builds its own tile of the mask from
slices of these arrays and no [L, L] array is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LAST_BUCKET = 128  # largest time bucket; a table of all buckets has one entry more


class Tokens(NamedTuple):
    """What mask and position bias need to know of each token; leaves are [R, L] or [1, L], or None if unused."""

    start: Int[Array, "..."]  # row index where the token's sequence starts, -1 at padding
    index: Int[Array, "..."]  # row index of the token
    # effective position: all contexts of a sequence share one, all targets another
    position: Int[Array, "..."]
    target: Bool[Array, "..."] | None  # candidate tokens
    context: Bool[Array, "..."] | None  # contextual-prefix tokens
    exempt: Bool[Array, "..."] | None  # queries that the attention window does not limit


def describe_tokens(
    segments: Int[Array, "R L"],
    targets: Bool[Array, "R L"] | None = None,
    contexts: Bool[Array, "R L"] | None = None,
    *,
    full_window_tail: int = 0,
) -> Tokens:
    """Returns the per-token facts of packed rows.

    segments: 0 = padding; each run of an equal non-zero id is one sequence.
    targets, contexts: the tokens at the end, and at the start, of their sequence that share one effective position.
    full_window_tail: this many last history positions (and the targets) are exempt from an attention window.
    Without targets and contexts the effective position is the row index itself: only differences inside a
    sequence are ever used, and so they are known at compile time.
    """
    rows, length = segments.shape
    index = jnp.arange(length)[None]
    changes = segments[:, 1:] != segments[:, :-1]
    edge = jnp.ones((rows, 1), bool)
    first = jnp.concatenate([edge, changes], 1)
    start = jax.lax.cummax(jnp.where(first, index, 0), axis=1)
    position = index
    if targets is not None or contexts is not None:
        step = ~first
        if contexts is not None:
            step &= ~contexts
        if targets is not None:
            step &= ~(targets & jnp.roll(targets, 1, axis=1))
        steps = jnp.cumsum(step, axis=1)
        position = steps - jnp.take_along_axis(steps, start, axis=1)
    exempt = None
    if full_window_tail > 0:
        last = jnp.concatenate([changes, edge], 1)
        end = jax.lax.cummin(jnp.where(last, index, length - 1), axis=1, reverse=True)
        limit = jnp.take_along_axis(jnp.broadcast_to(position, segments.shape) + 1, end, axis=1)
        if targets is not None:
            limit -= jnp.take_along_axis(targets, end, axis=1)
        exempt = position >= limit - full_window_tail
    return Tokens(jnp.where(segments == 0, -1, start), index, position, targets, contexts, exempt)


def allowed_pairs(query: Tokens, key: Tokens, window: int | None = None) -> Bool[Array, "..."]:
    """Returns whether the query token sees the key token.

    The leaves of `query` and `key` broadcast, as [R, C, 1] and [R, 1, W].

    A token sees itself and the smaller effective positions of its own sequence, hence targets see the history and
    themselves only; `window` bounds the distance; a context token also sees every token that is no target.
    """
    if query.target is None and query.context is None:
        allowed = query.index >= key.index
    else:
        allowed = (query.index == key.index) | (query.position > key.position)
    if window is not None:
        near = query.position - key.position <= window
        allowed &= near if query.exempt is None else near | query.exempt
    if query.context is not None:
        allowed |= query.context if key.target is None else query.context & ~key.target
    return allowed & (query.start == key.start) & (key.start >= 0)


def time_bucket(seconds: Int[Array, "..."]) -> Int[Array, "..."]:
    """Returns min(trunc(ln(max(|seconds|, 1)) / 0.301), 128) as int32, computed in float32; the sign is ignored.

    >>> time_bucket(jnp.array([0, 1, 60, 3600, 86400])).tolist()
    [0, 0, 13, 27, 37]

    Source: the bucketisation of the research implementation of HSTU (arXiv:2402.17152).
    """
    magnitude = jnp.maximum(jnp.abs(seconds), 1).astype(jnp.float32)
    return jnp.minimum((jnp.log(magnitude) / 0.301).astype(jnp.int32), LAST_BUCKET)


def pair_bias(
    query: Tokens,
    key: Tokens,
    position_table: Float[Array, " P"] | None,
    time_table: Float[Array, " buckets"] | None,
    query_times: Int[Array, "..."] | None,
    key_times: Int[Array, "..."] | None,
) -> Float[Array, "..."] | float:
    """Returns position bias plus time bias of each pair, in at least float32; distances and buckets are clipped."""
    bias = 0.0
    if position_table is not None:
        distance = jnp.clip(query.position - key.position, 0, len(position_table) - 1)
        bias = (
            bias
            + position_table.astype(jnp.promote_types(position_table.dtype, jnp.float32))[distance]
        )
    if time_table is not None:
        assert query_times is not None and key_times is not None
        bucket = jnp.minimum(time_bucket(query_times - key_times), len(time_table) - 1)
        bias = bias + time_table.astype(jnp.promote_types(time_table.dtype, jnp.float32))[bucket]
    return bias
