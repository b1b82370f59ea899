"""The gradient of the position table from sums that kernels make in a fixed order, without atomics.

With d_ij the gradient of the bias of a visible pair, summed over heads, and rel_ij its distance, a
pair is one of
    diagonal  rel_ij = i - j: all pairs whose query is no target
    column    the query is a target: rel_ij = target_position_j - position_j does not depend on i
so that tiles of one block diagonal can be summed entry by entry, and the others by columns.

Letters: R rows, L tokens in a row, P position-table entries, G block diagonals, S block size.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.visible_keys import VisibleKeys


def position_gradient(
    diagonals: Float[Array, "G S S"],
    column_sums: Float[Array, "R L"] | None,
    visible: VisibleKeys,
    num_entries: int,
) -> Float[Array, " P"]:
    """The gradient of the position table, float32, with distances clipped to the table.

    diagonals: entry (g, a, b) is the sum of d_ij over the diagonal pairs with i - j = g S + a - b,
        i = a and j = b modulo S; entries with i < j are 0.
    column_sums: of d_ij over the column pairs of key j; None without targets.
    """
    by_distance = sum_diagonals(diagonals)
    kept = min(num_entries, len(by_distance))
    gradient = jnp.zeros(num_entries).at[:kept].set(by_distance[:kept])
    gradient = gradient.at[-1].add(by_distance[num_entries:].sum())
    if column_sums is not None:
        assert visible.position is not None and visible.target_position is not None
        distance = visible.target_position - visible.position
        gradient += _sum_by_bin(column_sums, distance, num_entries)
    return gradient


def sum_diagonals(diagonals: Float[Array, "G S S"]) -> Float[Array, " GS"]:
    """out[n] = sum of the entries (g, a, b) with g S + a - b = n; those with n < 0 are dropped."""
    blocks, size, _ = diagonals.shape
    # Rows of 2 S entries, read again as rows of 2 S - 1: row a is then shifted right by a, and
    # b - a is the column.
    shifted = jnp.pad(diagonals[:, :, ::-1], ((0, 0), (0, 0), (0, size))).reshape(blocks, -1)
    shifted = shifted[:, : size * (2 * size - 1)].reshape(blocks, size, 2 * size - 1)
    by_offset = shifted.sum(1)  # column a + (S - 1 - b): offset a - b = column - (S - 1)
    below, rest = by_offset[:, : size - 1], by_offset[:, size - 1 :]
    next_below = jnp.concatenate([below[1:], jnp.zeros_like(below[:1])])
    return (rest + jnp.pad(next_below, ((0, 0), (1, 0)))).reshape(-1)


def _sum_by_bin(
    values: Float[Array, "R L"], bins: Int[Array, "R L"], num_bins: int
) -> Float[Array, " P"]:
    """The sum of the values of each bin, in a fixed order as a GPU's scatter would not be."""
    bins = jnp.clip(bins, 0, num_bins - 1)
    return jnp.where(bins[..., None] == jnp.arange(num_bins), values[..., None], 0).sum((0, 1))
