"""Position-table gradients from diagonal and column sums, against a plain scatter of all pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.arguments import Mask
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
@given(seed=st.integers(0, 2**32 - 1), use_targets=st.booleans())
def test_the_two_kinds_of_pairs_give_the_gradient_of_all_pairs(entries, seed, use_targets):
    rng = np.random.default_rng(seed)
    segments, targets = (jnp.array(x) for x in random_rows(rng))
    rules = Mask(segments, targets if use_targets else None)
    tokens = describe_tokens(rules)
    query, key = (
        jax.tree.map(lambda x: x[:, :, None], tokens),
        jax.tree.map(lambda x: x[:, None, :], tokens),
    )
    mask = np.array(allowed_pairs(query, key))
    distance = np.broadcast_to(query.position - key.position, mask.shape)
    d = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
    expected = np.zeros(entries)
    np.add.at(expected, np.clip(distance, 0, entries - 1)[mask], d[mask])

    visible = visible_keys(rules)
    index = np.arange(LENGTH)
    diagonal = (distance == index[:, None] - index) & (index[:, None] >= index)
    by_target = np.broadcast_to(np.array(visible.end <= index)[:, :, None], mask.shape)
    assert (diagonal | by_target)[mask].all()
    tiles = np.zeros((LENGTH // SIZE, SIZE, SIZE), np.float32)
    for i, j in np.ndindex(LENGTH, LENGTH):
        if i // SIZE >= j // SIZE:
            tiles[i // SIZE - j // SIZE, i % SIZE, j % SIZE] += np.where(by_target, 0, d)[
                :, i, j
            ].sum()
    ours = position_gradient(
        jnp.array(tiles),
        jnp.array(np.where(by_target, d, 0).sum(1)) if use_targets else None,
        visible,
        entries,
    )
    np.testing.assert_allclose(ours, expected, atol=1e-4)
