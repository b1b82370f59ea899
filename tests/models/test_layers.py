import jax
import jax.numpy as jnp
import numpy as np

from gr_jax.models import layers


def test_l2_normalise_has_a_finite_gradient_at_zero():
    gradient = jax.grad(lambda x: layers.l2_normalise(x).sum())(jnp.zeros(4))
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(layers.l2_normalise(jnp.array([3.0, 4.0])), [0.6, 0.8], atol=1e-6)


def test_layer_norm_has_mean_0_and_variance_1():
    x = layers.layer_norm(jax.random.normal(jax.random.key(0), (5, 64)) * 3 + 7, 1e-6)
    np.testing.assert_allclose(x.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(x.var(-1), 1, atol=1e-4)


def test_dropout_keeps_the_mean_and_drops_its_share():
    x = layers.dropout(jnp.ones(200_000), 0.2, jax.random.key(0))
    assert abs(float((x == 0).mean()) - 51 / 256) < 0.005  # 0.2 to the nearest 1/256
    assert abs(float(x.mean()) - 1) < 0.01
    assert len(np.unique(x)) == 2


def test_dropout_without_a_key_or_a_rate_is_the_identity():
    x = jnp.arange(4.0)
    np.testing.assert_array_equal(layers.dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(layers.dropout(x, 0.0, jax.random.key(0)), x)
