"""Position-table gradients from diagonal, row and column sums, against a plain scatter of all pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.masks import allowed_pairs, describe_tokens
from pallas_kernels.table_gradients import position_gradient, sum_diagonals
from pallas_kernels.visible_keys import visible_keys
from tests.pallas_kernels.packed_rows import LENGTH, random_rows

SIZE = 8  # of a block; divides LENGTH


def test_diagonals_are_summed_by_their_offset():
    tiles = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    expected = np.zeros(12)
    for (g, a, b), x in np.ndenumerate(tiles):
        if g * 4 + a - b >= 0:
            expected[g * 4 + a - b] += x
    np.testing.assert_allclose(sum_diagonals(jnp.array(tiles)), expected, atol=1e-5)


@pytest.mark.parametrize("entries", [5, LENGTH, 2 * LENGTH])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), use_targets=st.booleans(), use_contexts=st.booleans())
def test_the_three_kinds_of_pairs_give_the_gradient_of_all_pairs(
    entries, seed, use_targets, use_contexts
):
    rng = np.random.default_rng(seed)
    segments, targets, contexts = (jnp.array(x) for x in random_rows(rng))
    targets, contexts = targets if use_targets else None, contexts if use_contexts else None
    tokens = describe_tokens(segments, targets, contexts)
    query, key = (
        jax.tree.map(lambda x: x[:, :, None], tokens),
        jax.tree.map(lambda x: x[:, None, :], tokens),
    )
    mask = np.array(allowed_pairs(query, key))
    distance = np.broadcast_to(query.position - key.position, mask.shape)
    d = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
    expected = np.zeros(entries)
    np.add.at(expected, np.clip(distance, 0, entries - 1)[mask], d[mask])

    visible = visible_keys(segments, targets, contexts)
    index = np.arange(LENGTH)
    diagonal = (distance == index[:, None] - index) & (index[:, None] >= index)
    by_target = ~diagonal & np.array(visible.end <= index)[:, :, None]
    tiles = np.zeros((LENGTH // SIZE, SIZE, SIZE), np.float32)
    for i, j in np.ndindex(LENGTH, LENGTH):
        if i // SIZE >= j // SIZE:
            tiles[i // SIZE - j // SIZE, i % SIZE, j % SIZE] += np.where(diagonal, d, 0)[
                :, i, j
            ].sum()
    ours = position_gradient(
        jnp.array(tiles),
        jnp.array(np.where(~diagonal & ~by_target, d, 0).sum(2)) if use_contexts else None,
        jnp.array(np.where(by_target, d, 0).sum(1)) if use_targets else None,
        visible,
        entries,
    )
    np.testing.assert_allclose(ours, expected, atol=1e-4)
