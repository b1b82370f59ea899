import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr_jax.training.ranking import metrics


def auc_by_all_pairs(prediction, outcome):
    ones, zeros = prediction[outcome == 1], prediction[outcome == 0]
    pairs = [(a > b) + (a == b) / 2 for a in ones for b in zeros]
    return sum(pairs) / len(pairs) if pairs else None


# Few different values, so that there are ties.
events = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 3)), max_size=30)


def columns(rows):
    prediction, outcome, user = np.array(rows, np.int64).reshape(-1, 3).T
    return (prediction / 4).astype(np.float32), outcome.astype(np.float32), user


@given(events)
def test_auc_equals_the_share_of_all_pairs(rows):
    prediction, outcome, _ = columns(rows)
    assert metrics.auc(prediction, outcome) == pytest.approx(
        auc_by_all_pairs(prediction, outcome), abs=1e-12
    )


@given(events)
def test_per_user_auc_equals_the_mean_over_users_with_both_classes(rows):
    prediction, outcome, user = columns(rows)
    each = [auc_by_all_pairs(prediction[user == u], outcome[user == u]) for u in range(4)]
    each = [value for value in each if value is not None]
    expected = np.mean(each) if each else None
    assert metrics.per_user_auc(prediction, outcome, user) == pytest.approx(expected, abs=1e-12)


def test_metrics_equal_numbers_computed_by_hand():
    prediction, outcome = np.array([0.5, 0.25, 0.75, 0.5]), np.array([1.0, 0.0, 0.0, 0.0])
    mean = (math.log(2) + math.log(4 / 3) + math.log(4) + math.log(2)) / 4
    entropy = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert metrics.log_loss(prediction, outcome) == pytest.approx(mean)
    assert metrics.ne(prediction, outcome) == pytest.approx(mean / entropy)
    assert metrics.auc(prediction, outcome) == pytest.approx(
        1.5 / 3
    )  # above 0.25, below 0.75, equal to 0.5
    assert metrics.calibration(prediction, outcome) == pytest.approx(2.0)
    assert metrics.mse(prediction, outcome) == pytest.approx((0.25 + 0.0625 + 0.5625 + 0.25) / 4)


def test_the_constant_rate_has_normalised_entropy_1():
    outcome = np.array([1.0, 0, 0, 1, 0])
    assert metrics.ne(np.full(5, 0.4), outcome) == pytest.approx(1)
    assert metrics.ne(np.full(5, 0.5), outcome) > 1.02


def test_a_certain_mistake_costs_much_and_stays_finite():
    assert 20 < metrics.log_loss(np.array([1.0, 0.0], np.float32), np.array([0.0, 0.0])) * 2 < 30


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_labels_of_one_class_leave_ne_and_auc_undefined_and_say_so(label):
    values = summarise_one(np.full(6, label))
    assert values["undefined/liked"] == 1 and values["labels/liked"] == 6
    assert not {"ne", "ne/liked", "auc/liked", "user_auc/liked"} & set(values)
    assert ("calibration/liked" in values) == (label > 0)
    assert all(np.isfinite(list(values.values())))


def summarise_one(outcome, weight=None, history=None):
    n = len(outcome)
    return metrics.summarise(
        np.linspace(0.2, 0.8, n, dtype=np.float32)[:, None],
        outcome[:, None],
        np.ones((n, 1)) if weight is None else weight[:, None],
        np.arange(n) % 2,
        np.zeros(n, np.int64) if history is None else history,
        ("liked",),
        (False,),
    )


def test_a_task_without_labels_is_undefined():
    assert summarise_one(np.ones(4), np.zeros(4)) == {"undefined/liked": 1, "labels/liked": 0}


def test_summary_has_every_metric_whole_and_by_history_length():
    rng = np.random.default_rng(0)
    n = 400
    prediction, user = rng.random((n, 3)).astype(np.float32), rng.integers(0, 9, n)
    outcome = rng.integers(0, 2, (n, 3)).astype(np.float32)
    outcome[:, 1] *= 3.5
    weight = (rng.random((n, 3)) < 0.7).astype(np.float32)
    history = rng.choice([0, 15, 16, 63, 64, 255, 256, 5000], n)
    got = metrics.summarise(
        prediction,
        outcome,
        weight,
        user,
        history,
        ("click", "rating", "liked"),
        (False, True, False),
    )
    assert got["ne"] == pytest.approx((got["ne/click"] + got["ne/liked"]) / 2)
    buckets = {
        "history_0-15": (0, 15),
        "history_16-63": (16, 63),
        "history_64-255": (64, 255),
        "history_256+": (256, 10**9),
    }
    for name, (first, last) in {"": (0, 10**9), **buckets}.items():
        for y, task in enumerate(("click", "rating", "liked")):
            chosen = (weight[:, y] > 0) & (history >= first) & (history <= last)
            p, o, u = prediction[chosen, y], outcome[chosen, y], user[chosen]
            expected = {"labels": chosen.sum(), "calibration": metrics.calibration(p, o)}
            if task == "rating":
                expected |= {"mse": metrics.mse(p, o)}
            else:
                expected |= {
                    "ne": metrics.ne(p, o),
                    "auc": metrics.auc(p, o),
                    "log_loss": metrics.log_loss(p, o),
                }
                expected |= {"user_auc": metrics.per_user_auc(p, o, u)}
            for metric, value in expected.items():
                assert got.pop("/".join(filter(None, (metric, task, name)))) == value
    assert set(got) == {"ne"}


def test_predictions_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="1 predictions of liked"):
        metrics.summarise(
            *(np.full((1, 1), v) for v in (np.nan, 1.0, 1.0)),
            np.zeros(1, int),
            np.zeros(1, int),
            ("liked",),
            (False,),
        )
