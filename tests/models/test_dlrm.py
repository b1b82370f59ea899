import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gr_jax.config import ModelConfig
from gr_jax.data.batches.batch import Impressions
from gr_jax.models.dlrm import Dlrm
from gr_jax.models.embeddings import table_entries
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from tests.models.ranking_batch import ACTIONS, ITEM_FEATURES, ITEMS, TASK_NAMES, TASKS, VALUES

B, N = 4, 7


@functools.cache
def make(**changes):
    """Structure and params with all tables large enough to matter."""
    config = ModelConfig(kind="dlrm", width=8, hidden_widths=(12, 10), cross_layers=2, **changes)
    graphdef, init = make_model(config, ModelSizes(ITEMS, N, ACTIONS, VALUES, TASK_NAMES))

    @jax.jit  # one program instead of one for each shape
    def start():
        params = init(jax.random.key(0))
        return jax.tree.map(
            lambda a: a + 0.2 * jax.random.normal(jax.random.key(a.size), a.shape), params
        )

    return graphdef, start()


@functools.partial(jax.jit, static_argnums=0)
def rank(graphdef, params, impressions, key=None):
    return nnx.merge(graphdef, params).rank(impressions, key=key)


def impressions(lengths=(0, 1, 4, 7), columns=N, seed=0) -> Impressions:
    rng = np.random.default_rng(seed)
    fields = dict(
        item=rng.integers(1, ITEMS + 1, B),
        user_features=rng.integers(0, VALUES + 1, (B, 3)),
        history_item=rng.integers(1, ITEMS + 1, (B, N)),
        history_action=1 + 2 * rng.integers(0, 2**ACTIONS, (B, N)),
        history_age=rng.integers(0, 10**7, (B, N)),
    )
    for name, array in fields.items():
        if name.startswith("history"):
            array[np.arange(N) >= np.array(lengths)[:, None]] = 0
            fields[name] = np.pad(array, [(0, 0), (0, columns - N)] + [(0, 0)] * (array.ndim - 2))
    nothing = np.zeros((B, TASKS), np.float32)
    fields["catalogue_features"] = np.random.default_rng(9).integers(
        0, VALUES + 1, (table_entries(ITEMS), ITEM_FEATURES)
    )
    return Impressions(
        **{name: jnp.asarray(a, jnp.int32) for name, a in fields.items()},
        outcome=nothing,
        outcome_weight=nothing,
    )


def test_the_order_of_the_history_does_not_matter_if_the_ages_move_with_the_events():
    graphdef, params = make()
    batch = impressions()
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    histories = [f.name for f in dataclasses.fields(batch) if f.name.startswith("history")]
    moved = dataclasses.replace(
        batch, **{name: getattr(batch, name)[:, order] for name in histories}
    )
    expected = rank(graphdef, params, batch)
    np.testing.assert_allclose(rank(graphdef, params, moved), expected, atol=1e-5)
    wrong_ages = dataclasses.replace(moved, history_age=batch.history_age)
    assert np.abs(rank(graphdef, params, wrong_ages) - expected)[2:].max() > 1e-2


def test_padding_of_the_history_and_its_content_do_not_matter():
    graphdef, params = make()
    batch = impressions()
    expected = rank(graphdef, params, batch)
    np.testing.assert_allclose(
        rank(graphdef, params, impressions(columns=N + 5)), expected, atol=1e-5
    )
    real = batch.history_item != 0
    noise = {
        "history_action": jnp.where(real, batch.history_action, 7),
        "history_age": jnp.where(real, batch.history_age, 12345),
    }
    np.testing.assert_array_equal(
        rank(graphdef, params, dataclasses.replace(batch, **noise)), expected
    )


def test_impressions_do_not_see_one_another_nor_outcomes():
    graphdef, params = make()
    batch, other = impressions(), impressions(seed=1)
    mixed = jax.tree.map(
        lambda a, b: a if a is batch.catalogue_features else jnp.concatenate([a[:2], b[2:]]),
        batch,
        other,
    )
    ones = jnp.ones((B, TASKS))
    mixed = dataclasses.replace(mixed, outcome=ones, outcome_weight=ones)
    np.testing.assert_array_equal(
        rank(graphdef, params, mixed)[:2], rank(graphdef, params, batch)[:2]
    )


@pytest.mark.parametrize(
    "field",
    ["item", "user_features", "history_item", "history_action", "history_age"],
)
def test_every_input_matters(field):
    graphdef, params = make()
    batch = impressions()
    step = 10**7 if field == "history_age" else 2
    changed = dataclasses.replace(batch, **{field: getattr(batch, field).at[3].add(step)})
    difference = np.abs(rank(graphdef, params, changed) - rank(graphdef, params, batch))
    assert difference[3].max() > 1e-3 and not difference[:3].any()


def test_features_of_items_matter():
    graphdef, params = make()
    batch = impressions()
    changed = dataclasses.replace(
        batch, catalogue_features=jnp.roll(batch.catalogue_features, 1, axis=0)
    )
    assert np.abs(rank(graphdef, params, changed) - rank(graphdef, params, batch)).max() > 1e-3


def test_intensity_matters_the_same_event_twice_is_not_the_event_once():
    graphdef, params = make()
    twice = impressions(lengths=(0, 1, 2, 2))
    histories = [f.name for f in dataclasses.fields(twice) if f.name.startswith("history")]
    twice = dataclasses.replace(
        twice,
        **{
            name: getattr(twice, name).at[:, 1].set(getattr(twice, name)[:, 0])
            for name in histories
        },
    )
    once = dataclasses.replace(
        twice, **{name: getattr(twice, name).at[:, 1].set(0) for name in histories}
    )
    pooled = jax.jit(lambda x: nnx.merge(graphdef, params)._input(x)[2:, 16:24])
    once, twice = pooled(once), pooled(twice)
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)
    assert np.abs(once).max() > 1e-2


def test_gradients_are_finite_and_reach_every_parameter():
    graphdef, params = make()
    grads = jax.grad(lambda p: jnp.square(rank(graphdef, p, impressions())).sum())(params)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all() and np.abs(g).max() > 0, path


def test_dropout_needs_a_key_and_bfloat16_gives_float32_logits_nearby():
    graphdef, params = make()
    batch = impressions()
    expected = rank(graphdef, params, batch)
    assert np.abs(rank(graphdef, params, batch, jax.random.key(0)) - expected).max() > 1e-2
    low, _ = make(compute_dtype="bfloat16")
    close = rank(low, params, batch)
    assert close.dtype == jnp.float32 and isinstance(nnx.merge(low, params), Dlrm)
    np.testing.assert_allclose(close, expected, atol=0.05 * float(np.abs(expected).max()))


def test_a_log_without_features_and_actions_will_do():
    config = ModelConfig(kind="dlrm", width=8, hidden_widths=(12,), cross_layers=0)
    model = Dlrm(config, ModelSizes(ITEMS, N, tasks=("liked",)), rngs=nnx.Rngs(0))
    plain = dataclasses.replace(impressions(), catalogue_features=None, user_features=None)
    assert np.isfinite(jax.jit(lambda x: model.rank(x))(plain)).all()
