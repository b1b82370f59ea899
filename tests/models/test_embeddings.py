import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gr_jax.models.embeddings import InputEmbeddings
from tests.models.ranking_batch import ACTIONS, ITEMS, VALUES, one_per_row, random_sequence

WIDTH, N = 8, 12


def make(**changes) -> InputEmbeddings:
    sizes = dict(num_actions=ACTIONS, num_feature_values=VALUES) | changes
    init = jax.nn.initializers.normal(0.1)
    return InputEmbeddings(ITEMS, N, WIDTH, **sizes, position_init=init, rngs=nnx.Rngs(0))


def embed(embeddings, batch):
    return np.asarray(embeddings(batch, rate=0.0, dtype=jnp.dtype("float32"), key=None))


def test_a_token_is_the_sum_of_the_vectors_of_what_it_holds():
    embeddings = make()
    items, values, actions, positions = (
        np.asarray(table[...], np.float64)
        for table in (
            embeddings.item_table,
            embeddings.feature_table,
            embeddings.action_table,
            embeddings.position_table,
        )
    )
    sequence = random_sequence(np.random.default_rng(0), contexts=2, events=6, candidates=2)
    sequence[3] |= dict(item=5, action=1 + 2 * 0b101)  # item and action in one token
    x = embed(embeddings, one_per_row([sequence], (2, 30)))
    for t, got in zip(sequence, x[0], strict=False):
        expected = positions[min(t["position"], N - 1)].copy()
        if t["item"]:
            expected += items[t["item"]] * WIDTH**0.5
        for value in (*t["item_features"], t["user_feature"]):
            if value:
                expected += values[value]
        for bit in range(ACTIONS + 1):
            if t["action"] >> bit & 1:
                expected += actions[bit]
        np.testing.assert_allclose(got, expected, atol=1e-6)
    assert max(t["position"] for t in sequence) >= N
    assert not x[0, len(sequence) :].any() and not x[1].any()


def test_models_without_features_and_actions_have_no_tables_for_them_and_refuse_such_batches():
    plain = make(num_actions=0, num_feature_values=0)
    assert set(nnx.to_pure_dict(nnx.state(plain, nnx.Param))) == {"item_table", "position_table"}
    batch = one_per_row(
        [random_sequence(np.random.default_rng(0), contexts=1, events=2, candidates=0)], (1, 12)
    )
    with pytest.raises(ValueError, match="num_feature_values=0"):
        embed(plain, batch)
    with pytest.raises(ValueError, match="num_actions=0"):
        embed(make(num_actions=0), batch)


def test_other_tables_start_as_large_as_scaled_items():
    embeddings = InputEmbeddings(
        1000,
        N,
        64,
        num_actions=100,
        num_feature_values=1000,
        position_init=nnx.initializers.zeros,
        rngs=nnx.Rngs(0),
    )
    scale = float(embeddings.item_table[...].std()) * 64**0.5
    assert float(embeddings.feature_table[...].std()) == pytest.approx(scale, rel=0.05)
    assert float(embeddings.action_table[...].std()) == pytest.approx(scale, rel=0.05)
