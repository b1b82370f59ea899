"""Effective positions, mask rules and time buckets."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.masks import allowed_pairs, describe_tokens, time_bucket


def pairs(segments, targets=None, contexts=None, window=None, full_window_tail=0):
    """Returns the mask [R, L, L]."""
    as_array = lambda x: None if x is None else jnp.array(x)
    tokens = describe_tokens(
        jnp.array(segments),
        as_array(targets),
        as_array(contexts),
        full_window_tail=full_window_tail,
    )
    query, key = (
        jax.tree.map(lambda x, axis=axis: jnp.expand_dims(x, axis), tokens) for axis in (2, 1)
    )
    return np.array(
        jnp.broadcast_to(
            allowed_pairs(query, key, window), (*np.shape(segments), np.shape(segments)[1])
        )
    )


def test_a_token_sees_itself_and_the_past_of_its_own_sequence():
    mask = pairs([[0, 1, 1, 2, 2, 0]])[0]
    expected = [(1, 1), (2, 1), (2, 2), (3, 3), (4, 3), (4, 4)]
    assert list(zip(*np.nonzero(mask), strict=True)) == expected


def test_runs_of_the_same_id_are_different_sequences():
    mask = pairs([[1, 1, 0, 1]])[0]
    assert not mask[3, :3].any() and mask[3, 3]


def test_contexts_share_position_0_and_targets_share_the_last_one():
    segments = np.array([[1, 1, 1, 1, 1, 1, 2, 2]])
    contexts = np.array([[1, 1, 0, 0, 0, 0, 0, 0]], bool)
    targets = np.array([[0, 0, 0, 0, 1, 1, 0, 1]], bool)
    tokens = describe_tokens(jnp.array(segments), jnp.array(targets), jnp.array(contexts))
    np.testing.assert_array_equal(tokens.position, [[0, 0, 1, 2, 3, 3, 0, 1]])
    mask = pairs(segments, targets, contexts)[0]
    assert mask[:2, :4].all()  # the contextual prefix sees the whole history
    assert not mask[:4, 4:].any()  # nobody else sees a target
    assert (
        mask[5, :4].all() and mask[5, 5] and not mask[5, 4]
    )  # targets see the history and themselves


def test_the_last_history_positions_are_exempt_from_the_window():
    segments, targets = np.ones((1, 6), int), np.array([[0, 0, 0, 0, 0, 1]], bool)
    windowed = pairs(segments, targets, window=1)[0]
    exempt = pairs(segments, targets, window=1, full_window_tail=1)[0]
    np.testing.assert_array_equal(windowed.sum(1), [1, 2, 2, 2, 2, 2])
    np.testing.assert_array_equal(exempt.sum(1), [1, 2, 2, 2, 5, 6])


def test_masks_match_the_reference_vectors(golden):
    vectors = golden("stu_attention")
    size = int(vectors["max_seq_len"])
    position = np.arange(size)[None]
    lengths, num_targets = vectors["lengths"][:, None], vectors["num_targets"][:, None]
    segments = (position < lengths).astype(np.int32)
    for i, name in enumerate(vectors["variant_names"]):
        setting = {key: int(vectors[f"variant_{key}"][i]) for key in
                   ("uses_targets", "max_attn_len", "contextual_seq_len", "min_full_attn_seq_len")}  # fmt: skip
        targets = (
            (position >= lengths - num_targets) & (position < lengths)
            if setting["uses_targets"]
            else None
        )
        context = setting["contextual_seq_len"]
        contexts = (position < context) & (position < lengths) if context else None
        mask = pairs(
            segments,
            targets,
            contexts,
            setting["max_attn_len"] or None,
            setting["min_full_attn_seq_len"],
        )
        np.testing.assert_array_equal(mask, vectors[f"{name}__mask"].astype(bool), err_msg=name)


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
