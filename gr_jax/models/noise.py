"""Random numbers of a training step that follow the rows of a batch, wherever these lie.

Rows of a batch for several devices are in an order of their own (`data.batches.packing.balance`).
Each still gets the dropout and the negatives that it has on one device, so that a run has the same
losses on any mesh.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Int, PRNGKeyArray, UInt, UInt32


class RowKey(NamedTuple):
    """A key, and the number that each row of the batch has on one device."""

    key: PRNGKeyArray
    row: Int[Array, " R"]


Key = PRNGKeyArray | RowKey


def key_of_rows(key: PRNGKeyArray, row: Int[Array, " R"] | None) -> Key:
    """The key of a batch with these numbers of rows; None = they stand in their own order."""
    return key if row is None else RowKey(key, row)


def split(key: Key, n: int) -> list[Key]:
    """`n` keys from one."""
    if isinstance(key, RowKey):
        return [RowKey(one, key.row) for one in jax.random.split(key.key, n)]
    return list(jax.random.split(key, n))


def random_bits(key: Key, shape: tuple[int, ...], dtype: type) -> UInt[Array, "*T"]:
    """Uniform random bits of an array whose first axis is that of the rows of a batch.

    Row r of it is row `key.row[r]` of `jax.random.bits(key.key, ...)`.

    dtype: uint8, uint16 or uint32.
    """
    if not isinstance(key, RowKey):
        return jax.random.bits(key, shape, dtype)
    # Threefry in JAX mixes the place of each element in the whole array.
    high, low = places(key.row, math.prod(shape[1:]))
    first, second = jax.random.key_data(key.key)
    mixed = threefry2x32_p.bind(first, second, high.reshape(shape), low.reshape(shape))
    return (mixed[0] ^ mixed[1]).astype(dtype)


def places(
    row: Int[Array, " R"], size: int
) -> tuple[UInt32[Array, "R {size}"], UInt32[Array, "R {size}"]]:
    """`row * size + (0 .. size - 1)` as numbers of 64 bits, in an upper and a lower half.

    row: below 2^16. size: elements of a row, below 2^32.
    """
    row = row.astype(jnp.uint32)[:, None]
    middle = row * jnp.uint32(size >> 16)  # row * size in two pieces that fit into 32 bits
    first = row * jnp.uint32(size & 0xFFFF) + (middle << 16)
    low = first + jnp.arange(size, dtype=jnp.uint32)
    carried = (first < (middle << 16)).astype(jnp.uint32) + (low < first)
    return jnp.broadcast_to((middle >> 16) + carried, low.shape), low
