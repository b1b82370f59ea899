import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.models import noise

ORDER = np.array([3, 0, 4, 1, 2], np.int32)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint32])
@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 3, 2)])
def test_bits_of_a_row_follow_it_to_another_place(shape, dtype):
    key = jax.random.key(3)
    whole = noise.random_bits(key, shape, dtype)
    moved = noise.random_bits(noise.key_of_rows(key, jnp.asarray(ORDER)), shape, dtype)
    np.testing.assert_array_equal(moved, whole[ORDER])


def test_split_keys_have_the_rows_of_the_whole_one():
    key = jax.random.key(3)
    plain = noise.split(key, 2)
    moved = noise.split(noise.key_of_rows(key, jnp.asarray(ORDER)), 2)
    for one, other in zip(plain, moved, strict=True):
        bits = [noise.random_bits(k, (5, 4), jnp.uint8) for k in (one, other)]
        np.testing.assert_array_equal(bits[1], bits[0][ORDER])


@pytest.mark.parametrize("size", [1, 65_535, 65_537, 300_001])
def test_places_beyond_32_bits_are_carried_over(size):
    row = np.array([0, 1, 20_000, 65_535], np.int32)
    high, low = noise.places(jnp.asarray(row), size)
    expected = row.astype(np.uint64)[:, None] * np.uint64(size) + np.arange(size, dtype=np.uint64)
    np.testing.assert_array_equal(high, (expected >> np.uint64(32)).astype(np.uint32))
    np.testing.assert_array_equal(low, expected.astype(np.uint32))
