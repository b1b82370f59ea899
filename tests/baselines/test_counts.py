"""The baselines of ranking against plain loops over a tiny log, and what they must not know."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.baselines import counts
from gr_jax.baselines.counts import PRIOR, Labels
from gr_jax.config import DataConfig
from gr_jax.data.batches.sequences import time_bounds
from gr_jax.data.log.preparation import prepare
from gr_jax.training.ranking.baselines import baselines

EVENTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 1), st.booleans()),
    min_size=2,
    max_size=30,
)


def labels_of(events: list[tuple[int, int, int, bool]], is_regression: bool = False) -> Labels:
    """Labels of (user, item, value, known) in the order of time."""
    user, item, value, known = (np.array(column) for column in zip(*events, strict=True))
    return Labels(user, item, value.astype(np.float64), known.astype(bool), is_regression)


def random_labels(seed: int, number: int = 200) -> Labels:
    rng = np.random.default_rng(seed)
    return labels_of([(*row, True) for row in rng.integers(0, (9, 9, 2), (number, 3)).tolist()])


@settings(max_examples=60)
@given(EVENTS)
def test_features_are_those_counted_event_by_event(events):
    rows = []
    for at, (user, item, *_) in enumerate(events):
        past = [event for event in events[:at] if event[3]]
        rate = (sum(event[2] for event in past) + 0.5) / (len(past) + 1)
        row = []
        for mine in ([p for p in past if p[0] == user], [p for p in past if p[1] == item]):
            own = (sum(p[2] for p in mine) + PRIOR * rate) / (len(mine) + PRIOR)
            row += [math.log(1 + len(mine)), own]
        rows.append([*row, rate])
    np.testing.assert_allclose(counts.features(labels_of(events)), rows, rtol=1e-12, atol=1e-12)


@settings(max_examples=40)
@given(EVENTS, st.data())
def test_an_outcome_changes_no_feature_of_its_event_or_an_earlier_one(events, data):
    changed = data.draw(st.integers(0, len(events) - 1))
    user, item, value, _ = events[changed]
    earlier = counts.features(labels_of(events))
    events[changed] = (user, item, 1 - value, True)
    later = counts.features(labels_of(events))
    np.testing.assert_array_equal(earlier[: changed + 1], later[: changed + 1])


def test_the_regression_is_where_the_gradient_vanishes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) * [1, 5, 0.1]
    truth = np.array([1.0, -0.3, 2.0, 0.7])
    y = (rng.random(400) < 1 / (1 + np.exp(-(x @ truth[:-1] + truth[-1])))).astype(float)
    weights = counts.fit_logistic(x, y, ridge=0.01)
    design = np.column_stack([x, np.ones(400)])
    penalty = np.array([0.01, 0.01, 0.01, 0])
    gradient = design.T @ (1 / (1 + np.exp(-design @ weights)) - y) / 400 + penalty * weights
    assert np.abs(gradient).max() < 1e-9
    assert abs(weights[0] - 1) < 0.5 and abs(weights[1] + 0.3) < 0.1

    weights = counts.fit_linear(x, y, ridge=0.01)
    gradient = design.T @ (design @ weights - y) / 400 + penalty * weights
    assert np.abs(gradient).max() < 1e-9


def test_collinear_features_and_separable_outcomes_have_a_finite_answer():
    x = np.repeat(np.linspace(-1, 1, 50)[:, None], 2, axis=1)
    y = (x[:, 0] > 0).astype(float)
    weights = counts.fit_logistic(x, y)
    assert np.isfinite(weights).all() and weights[0] == pytest.approx(weights[1])
    assert (((x @ weights[:-1] + weights[-1]) > 0) == (y > 0)).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_without_two_classes_to_fit_the_regression_is_the_constant(value):
    labels = random_labels(0)._replace(value=np.full(200, value))
    found = counts.predictions(labels, np.arange(200) < 150)
    assert (found["regression on counts"] == value).all()
    assert all(np.isfinite(prediction).all() for prediction in found.values())


def test_without_labels_before_the_test_everything_is_finite():
    labels = random_labels(0)._replace(known=np.arange(200) >= 150)
    found = counts.predictions(labels, np.arange(200) < 150)
    assert all(np.isfinite(prediction).all() for prediction in found.values())


def test_outcomes_of_the_test_part_do_not_reach_the_fit():
    labels, training = random_labels(1), np.arange(200) < 150
    value = labels.value.copy()
    value[-1] = 1 - value[-1]
    before = counts.predictions(labels, training)
    after = counts.predictions(labels._replace(value=value), training)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_on_real_ratings_counts_beat_the_means_and_these_the_constant(tmp_path, shared_data):
    from gr_jax.config import RankingConfig

    config = DataConfig(
        source="ml-100k",
        path=str(shared_data("ml-100k")),
        prepared=str(tmp_path / "out"),
        actions=("watched=1", "liked=rating>=4"),
    )
    dataset, tasks = prepare(config), ("liked", "rating")
    bounds = time_bounds(dataset.events.timestamp, RankingConfig(tasks=tasks))
    found = baselines(dataset, tasks, bounds)
    ne = [values["ne/liked"] for values in found.values()]
    assert 0.99 < ne[0] < 1.02 and ne[2] < 0.95 and ne[2] < ne[1] < ne[0]
    mse = [values["mse/rating"] for values in found.values()]
    assert mse[2] < mse[1] < mse[0]
