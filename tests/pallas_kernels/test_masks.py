"""Effective positions, mask rules and time buckets."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.arguments import Mask
from pallas_kernels.masks import allowed_pairs, describe_tokens, time_bucket


def pairs(segments, targets=None, window=None):
    """The mask [R, L, L]."""
    targets = None if targets is None else jnp.array(targets)
    tokens = describe_tokens(Mask(jnp.array(segments), targets, window))
    query = jax.tree.map(lambda x: jnp.expand_dims(x, 2), tokens)
    key = jax.tree.map(lambda x: jnp.expand_dims(x, 1), tokens)
    shape = (*np.shape(segments), np.shape(segments)[1])
    return np.array(jnp.broadcast_to(allowed_pairs(query, key, window), shape))


def test_a_token_sees_itself_and_the_past_of_its_own_sequence():
    mask = pairs([[0, 1, 1, 2, 2, 0]])[0]
    expected = [(1, 1), (2, 1), (2, 2), (3, 3), (4, 3), (4, 4)]
    assert list(zip(*np.nonzero(mask), strict=True)) == expected


def test_runs_of_the_same_id_are_different_sequences():
    mask = pairs([[1, 1, 0, 1]])[0]
    assert not mask[3, :3].any() and mask[3, 3]


def test_targets_share_the_last_position_and_see_the_history_and_themselves():
    segments = np.array([[1, 1, 1, 1, 1, 1, 2, 2]])
    targets = np.array([[0, 0, 0, 0, 1, 1, 0, 1]], bool)
    tokens = describe_tokens(Mask(jnp.array(segments), jnp.array(targets)))
    np.testing.assert_array_equal(tokens.position, [[0, 1, 2, 3, 4, 4, 0, 1]])
    mask = pairs(segments, targets)[0]
    assert not mask[:4, 4:].any()  # no other token sees a target
    assert mask[5, :4].all() and mask[5, 5] and not mask[5, 4]


def test_a_window_counts_from_the_end_of_the_history_for_every_target():
    segments, targets = np.ones((1, 7), int), np.array([[0, 0, 0, 0, 0, 1, 1]], bool)
    mask = pairs(segments, targets, window=2)[0]
    np.testing.assert_array_equal(mask.sum(1), [1, 2, 3, 3, 3, 3, 3])
    for target in (5, 6):
        assert np.flatnonzero(mask[target]).tolist() == [3, 4, target]


def test_masks_match_the_reference_vectors(golden):
    vectors = golden("stu_attention")
    position = np.arange(int(vectors["max_seq_len"]))[None]
    lengths, num_targets = vectors["lengths"][:, None], vectors["num_targets"][:, None]
    segments = (position < lengths).astype(np.int32)
    in_tail = (position >= lengths - num_targets) & (position < lengths)
    compared = []
    for i, name in enumerate(vectors["variant_names"]):
        of = lambda key, i=i: int(vectors[f"variant_{key}"][i])
        if of("contextual_seq_len") or of("min_full_attn_seq_len"):
            continue  # rules that this op does not have
        targets = in_tail if of("uses_targets") else None
        mask = pairs(segments, targets, of("max_attn_len") or None)
        np.testing.assert_array_equal(mask, vectors[f"{name}__mask"].astype(bool), err_msg=name)
        compared.append(name)
    assert len(compared) >= 4


def test_time_buckets_ignore_the_sign_and_start_at_0():
    np.testing.assert_array_equal(
        time_bucket(jnp.array([0, 1, -1, 2, -2, 3600, -3600])), [0, 0, 0, 2, 2, 27, 27]
    )
    assert time_bucket(jnp.array(5)).dtype == jnp.int32


def test_time_buckets_match_the_reference_vectors(golden):
    vectors = golden("time_buckets")
    buckets = np.array(time_bucket(jnp.array(vectors["time_diff"].astype(np.int32))))
    near_edge = vectors["near_edge"] == 1
    np.testing.assert_array_equal(buckets[~near_edge], vectors["bucket"][~near_edge])
    np.testing.assert_allclose(buckets[near_edge], vectors["bucket"][near_edge], atol=1)
