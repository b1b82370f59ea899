"""Negatives of the sampled losses, drawn on the device."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gr_jax.config import LossConfig
from gr_jax.data.batches.batch import ADDED_ROW
from gr_jax.models.noise import Key, RowKey, random_bits


def draw_negatives(
    key: Key,
    labels: Int[Array, "R L"],
    weights: Float[Array, "R L"],
    *,
    config: LossConfig,
    num_items: int,
) -> Int[Array, "R G K"] | None:
    """Item ids of the negatives that the loss of `config` needs; None for kind="full".

    Empty rows that one device would not have get 0, no item.

    Raises:
      ValueError: `config.group` does not divide L.
    """
    if config.kind == "full":
        return None
    length = labels.shape[1]
    group = config.group if config.kind == "group" else 1
    if length % group:
        raise ValueError(f"loss.group={group} must divide the row length {length}")
    negatives = sample_negatives(
        key,
        labels,
        weights,
        groups=length // group,
        count=config.negatives,
        sampler=config.sampler,
        num_items=num_items,
    )
    if isinstance(key, RowKey):  # what no row of one device names is not updated either
        negatives = jnp.where((key.row != ADDED_ROW)[:, None, None], negatives, 0)
    return negatives


def sample_negatives(
    key: Key,
    labels: Int[Array, "R L"],
    weights: Float[Array, "R L"],
    *,
    groups: int,
    count: int,
    sampler: str,
    num_items: int,
) -> Int[Array, "R groups {count}"]:
    """`count` item ids for each of the `groups` groups of a row, drawn with replacement.

    "uniform" draws from 1..num_items; "in_batch" from the labels that have a weight, each
    occurrence equally likely, and gives only 0 (no item) for a batch without weights. The ids
    depend on the key and the shapes alone, not on how the batch is sharded or later cut into
    chunks.

    Raises:
      ValueError: another sampler.
    """
    shape = (labels.shape[0], groups, count)
    if sampler == "uniform":
        return 1 + _integers_below(key, shape, np.uint32(num_items))
    if sampler == "in_batch":
        if isinstance(key, RowKey):
            in_order = jnp.argsort(key.row)
            labels, weights = labels[in_order], weights[in_order]
        counted = (weights > 0).reshape(-1) & (labels > 0).reshape(-1)
        counted_first = jnp.argsort(~counted, stable=True)
        draw = _integers_below(key, shape, jnp.maximum(jnp.sum(counted), 1).astype(jnp.uint32))
        ids = jnp.where(counted, labels.reshape(-1), 0)[counted_first[draw]]
        return ids.astype(jnp.int32)
    raise ValueError(f"sampler={sampler!r}: must be uniform or in_batch")


def _integers_below(key, shape, bound):
    """Integers in [0, bound), equally likely up to a share of bound / 2^32.

    That is 0.02 % for a million items.
    """
    # One remainder of 32 random bits: half the cost of jax.random.randint.
    return (random_bits(key, shape, jnp.uint32) % bound).astype(jnp.int32)
