"""Single events with the history before each, against the same written out event by event."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gr_jax.data.batches import impressions, tokenizer
from gr_jax.data.batches.batch import Share
from gr_jax.data.dataset import Dataset
from tests.data.batches.ranking_log import random_dataset

N = 4
STREAM = tokenizer.TokenScheme("interleave", True, -1, ("liked", "rating"), 2, 2)


@settings(max_examples=30, deadline=None)
@example(seed=641)  # a log whose series have no entry
@given(seed=st.integers(0, 10**6))
def test_an_impression_holds_the_event_and_what_came_before_it(seed):
    dataset = random_dataset(seed)
    events = np.random.default_rng(seed).permutation(dataset.num_events)[:5]
    batch = impressions.fill_impressions(
        dataset.events, dataset.catalogue, events, STREAM, size=7, max_length=N
    )
    for i, e in enumerate(events):
        user = int(np.searchsorted(dataset.events.offsets, e, "right")) - 1
        past = list(range(max(dataset.events.offsets[user], e - N), e))
        pad = [0] * (N - len(past))
        assert batch.item[i] == dataset.events.item[e]
        np.testing.assert_array_equal(batch.history_item[i], [*pad, *dataset.events.item[past]])
        np.testing.assert_array_equal(
            batch.history_action[i], [*pad, *(1 + 2 * dataset.events.action[past])]
        )
        np.testing.assert_array_equal(
            batch.history_age[i],
            [*pad, *(dataset.events.timestamp[e] - dataset.events.timestamp[past])],
        )
        rated = not np.isnan(dataset.events.rating[e])
        np.testing.assert_array_equal(batch.outcome_weight[i], [1, rated])
        np.testing.assert_array_equal(
            batch.outcome[i],
            [dataset.events.action[e] >> 1 & 1, np.nan_to_num(dataset.events.rating[e])],
        )
        np.testing.assert_array_equal(
            batch.user_features[i, :2], dataset.events.user_features[user]
        )
        low, high = dataset.events.series_offsets[user : user + 2]
        known = [
            dataset.events.series_value[s]
            for s in range(low, high)
            if dataset.events.series_time[s] <= dataset.events.timestamp[e]
        ]
        np.testing.assert_array_equal(
            batch.user_features[i, 2:], [0] * (2 - len(known)) + known[-2:]
        )
    for f in dataclasses.fields(batch):
        assert f.name == "catalogue_features" or not np.any(getattr(batch, f.name)[5:])


def test_an_impression_sees_the_series_as_a_sequence_does_whatever_follows():
    columns = {"user_features": None, "series_offsets": np.array([0, 2, 42])}
    columns["series_value"] = np.arange(1, 43, dtype=np.int32)
    columns["series_time"] = np.array([0, 100, *range(40)])
    times = np.array([50, 0, 3, 24, 39, 70])
    columns |= {"offsets": np.array([0, 1, 6]), "timestamp": times, "item": np.ones(6, np.int32)}
    columns |= {"rating": np.ones(6, np.float32), "action": np.ones(6, np.int32)}
    dataset = random_dataset(0, users=2)
    dataset = Dataset(dataset.catalogue, dataclasses.replace(dataset.events, **columns))
    for max_series in (1, 16, 50):
        scheme = dataclasses.replace(STREAM, num_user_features=0, max_series=max_series)
        events = np.arange(6)
        batch = impressions.fill_impressions(
            dataset.events, dataset.catalogue, events, scheme, size=6, max_length=N
        )
        known = [[1], *([*range(3, 3 + n)] for n in (1, 4, 25, 40, 40))]
        for got, values in zip(batch.user_features, known, strict=True):
            np.testing.assert_array_equal(got, ([0] * max_series + values)[-max_series:])


def test_processes_hold_parts_of_the_table_of_item_features():
    plan = dataclasses.replace(
        rows(shuffled=True, windows=1), catalogue_features=np.arange(16).reshape(8, 2)
    )
    parts = [plan.batch(0, Share(p, 2)).catalogue_features for p in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), plan.catalogue_features)
    padded = impressions.item_feature_table(plan.dataset, 16)
    np.testing.assert_array_equal(
        padded[: len(plan.dataset.catalogue.item_features)], plan.dataset.catalogue.item_features
    )
    assert padded.shape == (16, 3) and not padded[len(plan.dataset.catalogue.item_features) :].any()


def rows(*, shuffled: bool, windows: int) -> impressions.ImpressionBatches:
    dataset = random_dataset(1, users=20, events=20)
    order = impressions.events_between(dataset.events, 0, 10**9)
    return impressions.ImpressionBatches(
        dataset, STREAM, tuple(np.array_split(order, windows)), 8, N, shuffled, 0
    )


@pytest.mark.parametrize("shuffled", [True, False])
def test_an_epoch_has_every_event_once(shuffled):
    plan = rows(shuffled=shuffled, windows=1)
    per_epoch = plan.first_step(1)
    batches = [plan.batch(step) for step in range(2 * per_epoch)]
    items = [
        np.concatenate([b.item for b in part])
        for part in (batches[:per_epoch], batches[per_epoch:])
    ]
    expected = np.sort(plan.dataset.events.item)
    for part in items:
        np.testing.assert_array_equal(np.sort(part[part > 0]), expected)
    assert np.array_equal(items[0], items[1]) != shuffled
    assert plan.locate(2 * per_epoch + 1) == (2, 1)


def test_windows_are_taken_in_turn_and_processes_share_a_batch():
    plan = rows(shuffled=False, windows=3)
    assert plan.locate(plan.first_step(2)) == (2, 0) and plan.locate(plan.first_step(2) - 1)[0] == 1
    whole = plan.batch(plan.first_step(1))
    parts = [plan.batch(plan.first_step(1), Share(p, 2)) for p in range(2)]
    np.testing.assert_array_equal(np.concatenate([p.item for p in parts]), whole.item)


def test_an_evaluation_judges_each_event_once_with_its_history_counted():
    dataset = random_dataset(2, users=10)
    events = impressions.events_between(dataset.events, 0, 10**9)
    assert (np.diff(dataset.events.timestamp[events]) >= 0).all()
    judged = impressions.LabelImpressionBatches(dataset, STREAM, events, 8, N)
    user, history = (
        np.concatenate([getattr(judged.batch(i)[1], f) for i in range(len(judged))])
        for f in ("user", "history")
    )
    np.testing.assert_array_equal(dataset.events.offsets[user] + history, events)
