"""The baselines of ranking against plain loops over a tiny log, and what they must not know."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.quality import count_baseline
from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.dataset import Dataset, write
from gr_jax.data.log.preparation import prepare
from gr_jax.training.ranking import metrics

PRIOR = count_baseline.PRIOR


def log_of(folder, events: list[tuple[int, int, int, int]]) -> Dataset:
    """A dataset of (user, item, time, liked); the bit of `liked` is the second one."""
    events = sorted(events, key=lambda event: (event[0], event[2]))
    users = sorted({event[0] for event in events})
    items = sorted({event[1] for event in events})
    columns = {
        "offsets": np.cumsum([0] + [sum(event[0] == user for event in events) for user in users]),
        "item": np.array([items.index(event[1]) + 1 for event in events]),
        "timestamp": np.array([event[2] for event in events]),
        "action": np.array([1 + 2 * event[3] for event in events]),
    }
    meta = {"actions": ["watched", "liked"]}
    return write(
        folder / "log",
        columns=columns,
        raw_users=[str(user) for user in users],
        raw_items=[str(item) for item in items],
        meta=meta,
    )


EVENTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 9), st.integers(0, 1)),
    min_size=2,
    max_size=30,
)


def by_loops(dataset: Dataset) -> np.ndarray:
    """The features of every event, counted event by event."""
    user = np.repeat(np.arange(dataset.num_users), dataset.events.lengths)
    liked = [int(action) >> 1 & 1 for action in dataset.events.action]  # type: ignore[union-attr]
    rows = []
    for e in range(dataset.num_events):
        at = (dataset.events.timestamp[e], e)
        past = [p for p in range(dataset.num_events) if (dataset.events.timestamp[p], p) < at]
        rate = (sum(liked[p] for p in past) + 0.5) / (len(past) + 1)
        row = []
        for mine in (
            [p for p in past if user[p] == user[e]],
            [p for p in past if dataset.events.item[p] == dataset.events.item[e]],
        ):
            own = (sum(liked[p] for p in mine) + PRIOR * rate) / (len(mine) + PRIOR)
            row += [math.log(1 + len(mine)), own, math.log(own / (1 - own))]
        rows.append([*row, row[1] * row[4]])
    return np.array(rows)


@settings(deadline=None, max_examples=40)  # each writes files
@given(EVENTS)
def test_features_are_those_counted_event_by_event(tmp_path_factory, events):
    dataset = log_of(tmp_path_factory.mktemp("log"), events)
    features = count_baseline.count_features(dataset, "liked")
    np.testing.assert_allclose(features, by_loops(dataset), rtol=1e-12, atol=1e-12)
    assert features.shape[1] == len(count_baseline.FEATURES)


@settings(deadline=None, max_examples=25)
@given(EVENTS, st.data())
def test_an_outcome_changes_no_feature_of_its_event_or_an_earlier_one(
    tmp_path_factory, events, data
):
    folder = tmp_path_factory.mktemp("log")
    dataset = log_of(folder, events)
    changed = data.draw(st.integers(0, dataset.num_events - 1))
    before = count_baseline.count_features(dataset, "liked")
    action = np.array(dataset.events.action)
    action[changed] ^= 2
    object.__setattr__(dataset.events, "action", action)
    after = count_baseline.count_features(dataset, "liked")
    order = list(count_baseline.time_order(dataset))
    known = order[: order.index(changed) + 1]
    np.testing.assert_array_equal(before[known], after[known])
    later = order[order.index(changed) + 1 :]
    assert not later or (before[later] != after[later]).any()


def test_the_regression_is_where_the_gradient_vanishes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) * [1, 5, 0.1]
    truth = np.array([1.0, -0.3, 2.0, 0.7])
    y = (rng.random(400) < 1 / (1 + np.exp(-(x @ truth[:-1] + truth[-1])))).astype(float)
    weights = count_baseline.fit_logistic(x, y, ridge=0.01)
    design = np.column_stack([x, np.ones(400)])
    gradient = (
        design.T @ (1 / (1 + np.exp(-design @ weights)) - y) / 400 + [0.01, 0.01, 0.01, 0] * weights
    )
    assert np.abs(gradient).max() < 1e-9
    assert abs(weights[0] - 1) < 0.5 and abs(weights[1] + 0.3) < 0.1


def test_collinear_features_and_separable_outcomes_have_a_finite_answer():
    x = np.repeat(np.linspace(-1, 1, 50)[:, None], 2, axis=1)
    y = (x[:, 0] > 0).astype(float)
    weights = count_baseline.fit_logistic(x, y)
    assert np.isfinite(weights).all() and weights[0] == pytest.approx(weights[1])
    assert (((x @ weights[:-1] + weights[-1]) > 0) == (y > 0)).all()
    with pytest.raises(ConfigError, match="all training outcomes are of one class"):
        count_baseline.fit_logistic(x, np.ones(50))


def test_predictions_are_of_all_events_from_the_boundary_on_in_the_order_of_time(tmp_path):
    events = [
        (0, 0, 1, 1),
        (0, 1, 2, 0),
        (1, 0, 3, 1),
        (1, 1, 4, 0),
        (0, 2, 5, 1),
        (2, 0, 7, 1),
        (1, 2, 6, 0),
    ]
    dataset = log_of(tmp_path, events)
    for baseline in (count_baseline.constant_rate, count_baseline.count_regression):
        found = baseline(dataset, "liked", test_from=5)
        assert dataset.events.timestamp[found.event].tolist() == [
            5,
            6,
            7,
        ] and found.outcome.tolist() == [
            1,
            0,
            1,
        ]
        assert ((found.probability > 0) & (found.probability < 1)).all()
    assert (
        count_baseline.constant_rate(dataset, "liked", test_from=5).probability.tolist()
        == [0.5] * 3
    )
    regression = count_baseline.count_regression(dataset, "liked", test_from=5)
    assert regression.probability[2] > 0.5, "item 0 was always liked"
    assert count_baseline.split_time(dataset, 0.6) == 5
    with pytest.raises(ConfigError, match="no event on the test side of time 8"):
        count_baseline.constant_rate(dataset, "liked", test_from=8)
    with pytest.raises(ConfigError, match="no event on the training side of time 1"):
        count_baseline.count_regression(dataset, "liked", test_from=1)
    with pytest.raises(ConfigError, match="no action 'loved' in .*: it has watched, liked"):
        count_baseline.constant_rate(dataset, "loved", test_from=5)


def test_outcomes_of_the_test_part_do_not_reach_the_fit(tmp_path):
    rng = np.random.default_rng(1)
    events = [
        (int(u), int(i), t, int(y))
        for t, (u, i, y) in enumerate(rng.integers(0, (9, 9, 2), (200, 3)))
    ]
    dataset = log_of(tmp_path, events)
    before = count_baseline.count_regression(dataset, "liked", test_from=150)
    action = np.array(dataset.events.action)
    action[before.event[-1]] ^= 2
    object.__setattr__(dataset.events, "action", action)
    after = count_baseline.count_regression(dataset, "liked", test_from=150)
    np.testing.assert_array_equal(before.probability, after.probability)


def test_on_real_ratings_counts_beat_the_constant_rate(tmp_path, shared_data):
    config = DataConfig(
        source="ml-100k",
        path=str(shared_data("ml-100k")),
        prepared=str(tmp_path / "out"),
        actions=("watched=1", "liked=rating>=4"),
    )
    dataset = prepare(config)
    test_from = count_baseline.split_time(dataset, 0.9)
    ne = {}
    for baseline in (count_baseline.constant_rate, count_baseline.count_regression):
        found = baseline(dataset, "liked", test_from=test_from)
        ne[baseline.__name__] = metrics.ne(found.probability, found.outcome)
    assert 0.99 < ne["constant_rate"] < 1.02 and ne["count_regression"] < 0.95
