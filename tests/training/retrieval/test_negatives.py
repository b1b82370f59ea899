"""Draws of negatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.training.retrieval.negatives import sample_negatives

LABELS = jnp.array([[3, 0, 5, 3], [0, 0, 7, 9]], jnp.int32)
WEIGHTS = jnp.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.0]])


def draw(sampler, *, weights=WEIGHTS, seed=0, groups=4, count=5000, num_items=9):
    ids = sample_negatives(
        jax.random.key(seed),
        LABELS,
        weights,
        groups=groups,
        count=count,
        sampler=sampler,
        num_items=num_items,
    )
    return np.asarray(ids)


def shares(ids):
    return np.bincount(ids.reshape(-1), minlength=10) / ids.size


def test_uniform_draws_every_item_alike_and_never_padding():
    ids = draw("uniform")
    assert ids.shape == (2, 4, 5000)
    assert ids.dtype == np.int32
    np.testing.assert_allclose(shares(ids), [0] + [1 / 9] * 9, atol=0.01)


def test_in_batch_draws_follow_the_occurrences_of_labels_with_a_weight():
    np.testing.assert_allclose(
        shares(draw("in_batch")), [0, 0, 0, 0.5, 0, 0.25, 0, 0.25, 0, 0], atol=0.01
    )


def test_in_batch_without_any_weight_draws_no_item():
    assert not draw("in_batch", weights=jnp.zeros_like(WEIGHTS)).any()


@pytest.mark.parametrize("sampler", ["uniform", "in_batch"])
def test_draws_differ_between_groups_and_keys_and_repeat_with_the_key(sampler):
    ids = draw(sampler, count=50)
    assert (ids[0, 0] != ids[0, 1]).any() and (ids[0, 0] != ids[1, 0]).any()
    assert (ids != draw(sampler, count=50, seed=1)).any()
    np.testing.assert_array_equal(ids, draw(sampler, count=50))


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match="popular"):
        draw("popular")
