import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gr_jax.config import ConfigError, ModelConfig
from gr_jax.models import layers
from gr_jax.models.hstu import HstuBlock
from gr_jax.models.layers import Swiglu
from tests.models.golden_batch import padded_batch


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


X = jax.random.normal(jax.random.key(0), (2, 5, 4))


@pytest.fixture
def layer():
    return Swiglu(4, 6, rngs=nnx.Rngs(1))


def test_the_layer_is_a_gated_product_beside_the_residual(layer):
    x, gate, up, down = (np.asarray(a, np.float64) for a in (X, layer.gate, layer.up, layer.down))
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + layers.NORM_EPS)
    gated = normed @ gate
    expected = x + (gated / (1 + np.exp(-gated)) * (normed @ up)) @ down
    np.testing.assert_allclose(layer(X), expected, atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_gradients_equal_those_of_plain_differentiation(layer, rate):
    arrays = X, *(x[...] for x in (layer.gate, layer.up, layer.down))
    key = jax.random.key(3)
    weights = jax.random.normal(jax.random.key(4), X.shape)

    def gradients(function):
        return jax.grad(lambda arrays: jnp.sum(weights * function(rate, *arrays, key)))(arrays)

    ours, plain = gradients(layers._swiglu), gradients(layers._plain_swiglu)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, plain)


def test_dropout_needs_a_key(layer):
    np.testing.assert_array_equal(layer(X, rate=0.5), layer(X))
    assert np.abs(layer(X, rate=0.5, key=jax.random.key(0)) - layer(X)).max() > 0


def test_a_block_whose_layer_gives_zero_is_the_block_without_it():
    batch = padded_batch(np.ones((1, 6), np.int32), np.array([5]), np.arange(6)[None] * 100)
    x = jax.random.normal(jax.random.key(1), (1, 6, 8))
    with_layer, without = (
        HstuBlock(ModelConfig(width=8, swiglu_width=n), 6, rngs=nnx.Rngs(0)) for n in (12, 0)
    )
    params = nnx.to_pure_dict(nnx.state(with_layer, nnx.Param))
    nnx.update(without, {name: x for name, x in params.items() if name != "swiglu"})
    expected = without(x, batch, key=None)
    assert np.abs(with_layer(x, batch, key=None) - expected).max() > 1e-4
    with_layer.swiglu.down[...] = jnp.zeros((12, 8))
    np.testing.assert_array_equal(with_layer(x, batch, key=None), expected)


@pytest.mark.parametrize("kind", ["sasrec", "dlrm"])
def test_other_models_refuse_it(kind):
    with pytest.raises(ConfigError, match=f"model.swiglu_width=8.*0 for model.kind={kind}"):
        ModelConfig(kind=kind, swiglu_width=8)
