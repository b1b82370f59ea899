import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gr_jax.config import ConfigError, ModelConfig
from gr_jax.models.hstu import HstuBlock
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from tests.models.golden_batch import padded_batch


@pytest.fixture(params=["reference", "xla"])
def golden_block(request, golden):
    """Our block with the reference implementation's weights, its input, and its arrays."""
    g = golden("hstu_block")
    users, n, width = g["x"].shape
    config = ModelConfig(
        width=width,
        num_heads=int(g["num_heads"]),
        qk_width=int(g["dqk"]),
        v_width=int(g["dv"]),
        dropout=0.0,
        attention=request.param,
    )
    block = HstuBlock(config, n, rngs=nnx.Rngs(0))
    block.uvqk[...] = g["uvqk"]
    # Theirs is indexed from the longest distance back to 0.
    block.bias.position[...] = g["pos_w"][:n][::-1]
    block.bias.time[...] = g["ts_w"]
    block.output.kernel[...] = g["o_w"]
    block.output.bias[...] = g["o_b"]
    batch = padded_batch(np.ones((users, n), np.int32), g["lengths"], g["timestamps"])
    return block, jnp.asarray(g["x"]), batch, g


def test_block_equals_the_reference_implementation(golden_block):
    block, x, batch, g = golden_block
    out = jnp.where(batch.segment[..., None] != 0, block(x, batch, key=None), 0)
    np.testing.assert_allclose(out, g["block_out"], atol=1e-5)


def test_block_gradients_equal_the_reference_implementation(golden_block):
    block, x, batch, g = golden_block
    graphdef, params = nnx.split(block)

    def scalar(params, x):
        out = nnx.merge(graphdef, params)(x, batch, key=None)
        return jnp.sum(jnp.where(batch.segment[..., None] != 0, out * g["cotangent"], 0))

    grads, grad_x = jax.grad(scalar, argnums=(0, 1))(params, x)
    grads = nnx.to_pure_dict(grads)
    n = x.shape[1]
    np.testing.assert_allclose(grad_x, g["grad_x"], atol=1e-4)
    np.testing.assert_allclose(grads["uvqk"], g["grad_uvqk"], atol=1e-4)
    np.testing.assert_allclose(grads["output"]["kernel"], g["grad_o_w"], atol=1e-4)
    np.testing.assert_allclose(grads["output"]["bias"], g["grad_o_b"], atol=1e-4)
    np.testing.assert_allclose(grads["bias"]["position"], g["grad_pos_w"][:n][::-1], atol=1e-4)
    np.testing.assert_allclose(grads["bias"]["time"], g["grad_ts_w"], atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "tables"),
    [
        ("none", set()),
        ("position", {"position"}),
        ("time", {"time"}),
        ("both", {"position", "time"}),
    ],
)
def test_each_bias_ablation_has_its_own_tables(kind, tables):
    block = HstuBlock(ModelConfig(bias=kind, width=8), 10, rngs=nnx.Rngs(0))
    bias = nnx.to_pure_dict(nnx.state(block, nnx.Param)).get("bias", {})
    assert {name for name, value in bias.items() if value is not None} == tables
    batch = padded_batch(np.ones((1, 6), np.int32), np.array([5]), np.arange(6)[None] * 100)
    assert np.isfinite(block(jnp.ones((1, 6, 8)), batch, key=None)).all()


def test_query_time_matters_only_when_it_is_used():
    x = jax.random.normal(jax.random.key(0), (1, 6, 8))
    soon = padded_batch(
        np.ones((1, 6), np.int32), np.array([5]), np.array([[0, 10, 20, 30, 40, 50]])
    )
    late = padded_batch(
        np.ones((1, 6), np.int32), np.array([5]), np.array([[0, 10, 20, 30, 40, 999_999]])
    )
    for use, differs in ((True, True), (False, False)):
        block = HstuBlock(ModelConfig(width=8, use_query_time=use), 10, rngs=nnx.Rngs(0))
        block.bias.time[...] = jax.random.normal(jax.random.key(1), block.bias.time.shape)
        last = [np.asarray(block(x, batch, key=None))[0, 4] for batch in (soon, late)]
        assert (np.abs(last[0] - last[1]).max() > 1e-6) == differs


def test_the_softmax_rival_weighs_the_keys_that_a_query_sees_by_a_softmax():
    config = ModelConfig(
        kind="hstu_softmax", bias="none", width=8, num_heads=2, qk_width=3, v_width=4, dropout=0.0
    )
    block = HstuBlock(config, 6, rngs=nnx.Rngs(0))
    batch = padded_batch(np.ones((2, 6), np.int32), np.array([6, 4]), np.zeros((2, 6), np.int64))
    x = jax.random.normal(jax.random.key(1), (2, 6, 8))

    def dense(q, k, v):
        q, k, v = (np.asarray(y, np.float64) for y in (q, k, v))
        out = np.zeros(v.shape)
        for row, length in enumerate((6, 4)):
            for i in range(length):
                for head in range(2):
                    weight = np.exp(k[row, : i + 1, head] @ q[row, i, head] / np.sqrt(3))
                    out[row, i, head] = weight / weight.sum() @ v[row, : i + 1, head]
        return jnp.asarray(out, jnp.float32)

    real = batch.segment[..., None] != 0
    found = jnp.where(real, block(x, batch, key=None), 0)
    np.testing.assert_allclose(found, jnp.where(real, block.with_attention(x, dense), 0), atol=1e-5)


def test_the_softmax_rival_has_no_bias():
    with pytest.raises(ConfigError, match="model.bias='both'.*none for model.kind=hstu_softmax"):
        ModelConfig(kind="hstu_softmax")


def test_a_token_sees_the_window_before_it_and_itself():
    config = ModelConfig(width=8, num_heads=2, qk_width=3, v_width=4, window=2, bias="position")
    block = HstuBlock(config, 6, rngs=nnx.Rngs(0))
    batch = padded_batch(np.ones((2, 6), np.int32), np.array([6, 4]), np.zeros((2, 6), np.int64))
    x = jax.random.normal(jax.random.key(1), (2, 6, 8))

    def dense(q, k, v):
        distance = np.arange(6)[:, None] - np.arange(6)
        sees = (distance >= 0) & (distance <= 2)
        scores = jnp.einsum("rihA,rjhA->rhij", q, k) + block.bias.position[...][abs(distance)]
        return jnp.einsum("rhij,rjhV->rihV", jnp.where(sees, jax.nn.silu(scores), 0) / 6, v)

    real = batch.segment[..., None] != 0
    found = jnp.where(real, block(x, batch, key=None), 0)
    np.testing.assert_allclose(found, jnp.where(real, block.with_attention(x, dense), 0), atol=1e-5)


def losses_of(window: int, attention: str) -> np.ndarray:
    """Losses of a training in which the label of a token is the item two tokens before it."""
    item = np.random.default_rng(0).integers(1, 9, (8, 12))
    label = jnp.array(np.roll(item, 2, axis=1))
    batch = padded_batch(item, np.full(8, 12), np.zeros((8, 12), np.int64))
    config = ModelConfig(
        width=16,
        num_blocks=1,
        num_heads=2,
        qk_width=8,
        v_width=8,
        input_dropout=0.0,
        dropout=0.0,
        window=window,
        attention=attention,
    )
    graphdef, init = make_model(config, ModelSizes(8, 12))
    params = init(jax.random.key(0))
    optimizer = optax.adam(0.02)

    def loss(params):
        model = nnx.merge(graphdef, params)
        logits = model.encode(batch) @ model.embeddings.item_table[...].T / config.temperature
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)[:, 2:].mean()

    @jax.jit
    def step(params, moments):
        value, gradients = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), moments, value

    moments, losses = optimizer.init(params), []
    for _ in range(60):
        params, moments, value = step(params, moments)
        losses.append(float(value))
    return np.array(losses)


def test_a_model_with_a_window_learns_from_the_tokens_in_it_and_from_no_others():
    wide, narrow = losses_of(2, "xla"), losses_of(1, "xla")
    assert wide[-1] < wide[0] / 4
    assert narrow[-1] > 2 * wide[-1]
    np.testing.assert_allclose(wide[:20], losses_of(2, "reference")[:20], rtol=1e-3)
