"""The interval of visible keys and the visited blocks, against the mask rules pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.arguments import Mask
from pallas_kernels.masks import allowed_pairs, describe_tokens
from pallas_kernels.visible_keys import (
    key_block_ranges,
    longest_first,
    query_block_ranges,
    visible_keys,
)
from tests.pallas_kernels.packed_rows import LENGTH, random_rows

seeds = given(
    seed=st.integers(0, 2**32 - 1),
    use_targets=st.booleans(),
    window=st.sampled_from([None, 1, 3]),
)
many = settings(max_examples=60, deadline=None)


def random_visible(seed, use_targets, window):
    """The visible keys and the dense mask [R, L, L] of the same random rows."""
    segments, targets = (jnp.array(x) for x in random_rows(np.random.default_rng(seed)))
    mask = Mask(segments, targets if use_targets else None, window)
    tokens = describe_tokens(mask)
    query = jax.tree.map(lambda x: x[:, :, None], tokens)
    key = jax.tree.map(lambda x: x[:, None, :], tokens)
    allowed = allowed_pairs(query, key, window)
    return visible_keys(mask), np.array(allowed), np.array(segments)


@many
@seeds
def test_a_token_sees_its_interval_and_itself(seed, use_targets, window):
    visible, allowed, segments = random_visible(seed, use_targets, window)
    first, end = np.array(visible.first)[:, :, None], np.array(visible.end)[:, :, None]
    key = np.arange(LENGTH)
    mine = ((first <= key) & (key < end)) | (np.eye(LENGTH, dtype=bool) & (first < LENGTH))
    np.testing.assert_array_equal(mine, allowed)
    np.testing.assert_array_equal(np.array(visible.first) == LENGTH, segments == 0)


@pytest.mark.parametrize(("query_block", "key_block"), [(8, 8), (16, 8), (8, 16), (64, 16)])
@settings(max_examples=25, deadline=None)
@seeds
def test_every_visible_pair_is_in_a_visited_block(
    query_block, key_block, seed, use_targets, window
):
    visible, allowed, _ = random_visible(seed, use_targets, window)
    blocks = -(-LENGTH // key_block)
    ranges = key_block_ranges(visible, query_block, key_block)
    a, b, c, d = (np.array(ranges)[:, :, None, n] for n in range(4))
    assert (b <= c).all() and (d <= blocks).all() and (b <= blocks).all()
    key = np.arange(blocks)
    visits = ((a <= key) & (key < b)) | ((c <= key) & (key < d))
    row, i, j = np.nonzero(allowed)
    assert visits[row, i // query_block, j // key_block].all()
    queries = np.array(query_block_ranges(ranges, blocks))
    block = i // query_block
    assert (
        (queries[row, j // key_block, 0] <= block) & (block < queries[row, j // key_block, 1])
    ).all()
    padding = ~allowed.any(2)
    for r, q in np.ndindex(visits.shape[:2]):
        if padding[r, q * query_block : (q + 1) * query_block].all():
            assert not visits[r, q].any()


def test_many_targets_do_not_visit_one_another():
    segments = jnp.ones((1, 64), jnp.int32)
    targets = jnp.arange(64)[None] >= 16
    ranges = key_block_ranges(visible_keys(Mask(segments, targets)), 8, 8)
    np.testing.assert_array_equal(
        ranges[0, 6], [0, 2, 6, 7]
    )  # the history's two blocks and its own
    np.testing.assert_array_equal(query_block_ranges(ranges, 8)[0, 6], [6, 7])


def test_blocks_are_ordered_by_falling_work():
    work = jnp.array([[1, 5, 0], [5, 2, 9]])
    np.testing.assert_array_equal(longest_first(work), [5, 1, 3, 4, 0, 2])
