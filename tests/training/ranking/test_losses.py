import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.training.ranking.losses import ranking_loss

SHAPE, IS_REGRESSION, WEIGHTS = (3, 5, 3), (False, True, False), (1.0, 0.25, 2.0)


def make_labels(seed=0):
    rng = np.random.default_rng(seed)
    outcome = rng.integers(0, 2, SHAPE).astype(np.float32)
    outcome[..., 1] = rng.uniform(1, 5, SHAPE[:2])
    weight = (rng.random(SHAPE) < 0.6).astype(np.float32)
    return (
        jnp.asarray(3 * rng.normal(size=SHAPE), jnp.float32),
        jnp.asarray(outcome * weight),
        jnp.asarray(weight),
    )


@jax.jit
def value_and_grad(logits, outcome, weight):
    loss = lambda x: ranking_loss(x, outcome, weight, is_regression=IS_REGRESSION, weights=WEIGHTS)
    return jax.value_and_grad(loss, has_aux=True)(logits)


def test_loss_and_gradient_equal_the_formulas_in_float64():
    logits, outcome, weight = make_labels()
    (loss, by_task), grad = value_and_grad(logits, outcome, weight)
    x, y, w = (np.asarray(a, np.float64) for a in (logits, outcome, weight))
    p = 1 / (1 + np.exp(-x))
    is_regression = np.array(IS_REGRESSION)
    with np.errstate(invalid="ignore"):
        losses = np.where(is_regression, (x - y) ** 2, -(y * np.log(p) + (1 - y) * np.log1p(-p)))
    labels = w.sum((0, 1))
    means = (w * losses).sum((0, 1)) / labels
    np.testing.assert_allclose(by_task["task_loss"], means, rtol=1e-5)
    np.testing.assert_array_equal(by_task["labels"], labels)
    np.testing.assert_allclose(loss, (means * WEIGHTS).sum(), rtol=1e-5)
    expected = w * np.where(is_regression, 2 * (x - y), p - y) / labels * WEIGHTS
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)


def test_what_has_no_weight_has_no_influence_even_where_it_is_nan():
    logits, outcome, weight = make_labels()
    (expected, _), expected_grad = value_and_grad(logits, outcome, weight)
    spoilt = (jnp.where(weight > 0, a, jnp.nan) for a in (logits, outcome))
    (loss, _), grad = value_and_grad(*spoilt, weight)
    assert loss == expected
    np.testing.assert_array_equal(grad, expected_grad)


def test_tasks_without_labels_have_loss_and_gradient_zero():
    logits, outcome, weight = make_labels()
    (_, before), _ = value_and_grad(logits, outcome, weight)
    (_, by_task), grad = value_and_grad(logits, outcome, weight.at[..., 2].set(0))
    np.testing.assert_array_equal(by_task["task_loss"], before["task_loss"].at[2].set(0))
    assert not grad[..., 2].any() and np.isfinite(grad).all()
    (loss, _), grad = value_and_grad(logits, outcome, jnp.zeros(SHAPE))
    assert loss == 0 and not grad.any()


def test_large_logits_have_finite_loss_and_gradient():
    logits = jnp.full(SHAPE, 1e4).at[0].set(-1e4)
    (loss, _), grad = value_and_grad(logits, jnp.ones(SHAPE), jnp.ones(SHAPE))
    assert np.isfinite(loss) and np.isfinite(grad).all()


def test_tasks_without_given_weights_count_once_and_a_wrong_number_is_refused():
    labels = make_labels()
    loss, by_task = ranking_loss(*labels, is_regression=IS_REGRESSION)
    assert loss == pytest.approx(float(by_task["task_loss"].sum()), rel=1e-6)
    with pytest.raises(ValueError, match="weights="):
        ranking_loss(*labels, is_regression=IS_REGRESSION, weights=(1.0,))
    with pytest.raises(ValueError, match="is_regression="):
        ranking_loss(*labels, is_regression=(True,))
