"""The time buckets that the pairs of a tile can have, for kernels without gathers to loop over.

Letters: R rows, L tokens in a row, W tiles of 64 queries, K tiles of 64 keys.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int

from pallas_kernels.masks import LAST_BUCKET, time_bucket
from pallas_kernels.visible_keys import VisibleKeys

LARGEST = jnp.iinfo(jnp.int32).max
REACHED_BUCKETS = 72  # the largest int32 is in bucket 71


def bucket_limits(num_buckets: int) -> Int[Array, "buckets 2"]:
    """Smallest and largest |seconds| of each bucket of a table of this size, both inclusive.

    Found by bisection on `time_bucket` itself, hence exact for any logarithm that does not fall.
    Buckets that no int32 reaches are (LARGEST, LARGEST).
    """
    bucket = jnp.arange(1, num_buckets, dtype=jnp.int32)
    below, reached = jnp.zeros_like(bucket), jnp.full_like(bucket, LARGEST)
    for _ in range(31):
        middle = below + (reached - below) // 2
        enough = time_bucket(middle) >= bucket
        below, reached = jnp.where(enough, below, middle), jnp.where(enough, middle, reached)
    unreachable = bucket > time_bucket(jnp.array(LARGEST))
    first = jnp.concatenate(
        [jnp.full(1, jnp.iinfo(jnp.int32).min), jnp.where(unreachable, LARGEST, reached)]
    )
    next_first = jnp.where(unreachable, LARGEST, reached - 1)
    return jnp.stack([first, jnp.concatenate([next_first, jnp.full(1, LARGEST)])], -1).astype(
        jnp.int32
    )


def bucket_ranges(
    segments: Int[Array, "R L"],
    visible: VisibleKeys,
    query_times: Int[Array, "R L"],
    key_times: Int[Array, "R L"],
    num_buckets: int,
    tile: int,
) -> Int[Array, "R W K 2"]:
    """First and last bucket that the visible pairs of a tile can have; first > last for no pairs.

    The keys of a tile that a query sees are of one sequence, so the earliest and the latest key of
    that sequence in the tile bound them. Timestamps need not be sorted; where one is negative,
    differences may overflow: all buckets.
    """
    rows, length = segments.shape
    in_tiles = lambda x: x.reshape(rows, -1, tile)
    same = in_tiles(segments)[..., :, None] == in_tiles(segments)[..., None, :]
    keys = in_tiles(key_times)[..., None, :]
    earliest = jnp.where(same, keys, LARGEST).min(3).reshape(rows, length)
    latest = jnp.where(same, keys, -LARGEST).max(3).reshape(rows, length)

    # Of each query and tile of keys: the key of its sequence in the tile that stands for all of
    # them.
    start = jnp.arange(0, length, tile)
    index = jnp.arange(length)[None, :, None]
    own = (index // tile == start // tile) & (visible.first < length)[..., None]
    sees = (visible.first[..., None] < start + tile) & (visible.end[..., None] > start)
    at = jnp.where(own, index, jnp.clip(visible.first[..., None], start, start + tile - 1))
    of_sequence = lambda x: jnp.take_along_axis(x, at.reshape(rows, -1), axis=1).reshape(at.shape)
    earliest, latest = of_sequence(earliest), of_sequence(latest)

    # The distance of the query from the nearest and the furthest of these keys, as buckets.
    far, near = query_times[..., None] - earliest, query_times[..., None] - latest
    smallest = jnp.where((near <= 0) & (far >= 0), 0, jnp.minimum(jnp.abs(near), jnp.abs(far)))
    largest = jnp.maximum(jnp.abs(near), jnp.abs(far))
    signed = (query_times[..., None] < 0) | (earliest < 0)
    last_bucket = min(num_buckets - 1, LAST_BUCKET)
    low = jnp.where(signed, 0, jnp.minimum(time_bucket(smallest), last_bucket))
    high = jnp.where(signed, last_bucket, jnp.minimum(time_bucket(largest), last_bucket))
    over_queries = lambda x: x.reshape(rows, -1, tile, x.shape[2])
    low = over_queries(jnp.where(own | sees, low, num_buckets)).min(2)
    high = over_queries(jnp.where(own | sees, high, -1)).max(2)
    return jnp.stack([low, high], -1).astype(jnp.int32)
