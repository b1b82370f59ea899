"""One pass in the order of time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.config import Config, ConfigError, DataConfig, TrainConfig
from gr_jax.data.batches import streaming, tokenizer
from gr_jax.data.batches.batch import Share
from gr_jax.data.dataset import Dataset, Events
from tests.data.batches.ranking_log import random_dataset

STREAM = tokenizer.TokenScheme("interleave", True, -1, ("liked",), 0, 0)
GAP = 250  # seconds; the logs have gaps of multiples of 100


def examples(dataset, *, low=0, high=10**9, max_length=4, rate=0.0, seed=0):
    return streaming.session_spans(
        dataset.events, low, high, gap=GAP, max_length=max_length, rate=rate, seed=seed
    )


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), max_length=st.integers(1, 6))
def test_each_event_is_a_label_once_and_no_example_reaches_past_its_moment(seed, max_length):
    dataset = random_dataset(seed, users=5, features=False)
    spans, emitted = examples(dataset, max_length=max_length)
    assert (np.diff(emitted) >= 0).all()
    labels = []
    for begin, length, label, moment in zip(
        spans.begin, spans.length, spans.label_from, emitted, strict=True
    ):
        assert length <= max_length and begin <= label
        assert dataset.events.timestamp[begin + length - 1] <= moment
        labels += range(label, begin + length)
    np.testing.assert_array_equal(np.sort(labels), np.arange(dataset.num_events))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_an_example_is_emitted_where_the_next_event_is_more_than_a_gap_away(seed):
    dataset = random_dataset(seed, users=3, features=False)
    spans, _ = examples(dataset, max_length=1000)
    ends = []
    for user in range(dataset.num_users):
        low, high = dataset.events.offsets[user : user + 2]
        ends += [
            e
            for e in range(low, high)
            if e + 1 == high or dataset.events.timestamp[e + 1] - dataset.events.timestamp[e] > GAP
        ]
    np.testing.assert_array_equal(np.sort(spans.last_event), ends)


def test_examples_are_kept_at_a_rate_over_their_length_and_labels_stay_unique():
    lengths = np.repeat([2, 8], 2000)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    base = random_dataset(0, features=False)
    time = np.concatenate([np.arange(n) for n in lengths])  # one session a user
    item = np.ones(len(time), np.int32)
    dataset = Dataset(base.catalogue, Events(offsets, item, time))
    spans, _ = examples(dataset, max_length=8, rate=1.0)
    kept = np.bincount(lengths[spans.user], minlength=9)
    assert abs(kept[2] / 2000 - 1 / 2) < 0.05
    assert abs(kept[8] / 2000 - 1 / 8) < 0.03
    assert (spans.label_from == dataset.events.offsets[spans.user]).all()


def test_labels_of_dropped_examples_go_to_the_next_one():
    dataset = random_dataset(3, users=40, events=30, features=False)
    spans, _ = examples(dataset, max_length=16, rate=4.0, seed=1)
    ends = dataset.events.offsets[spans.user + 1]
    assert len(spans) < len(examples(dataset, max_length=16)[0])
    labels = np.concatenate(
        [
            np.arange(a, b + n)
            for a, b, n in zip(spans.label_from, spans.begin, spans.length, strict=True)
        ]
    )
    assert len(labels) == len(np.unique(labels))
    assert (spans.begin + spans.length <= ends).all()


def test_windows_hold_equally_many_events():
    time = np.random.default_rng(0).permutation(1000)
    edges = streaming.window_edges(time, 0, 800, 4)
    assert [
        int(((time >= a) & (time < b)).sum()) for a, b in zip(edges[:-1], edges[1:], strict=True)
    ] == [200] * 4
    with pytest.raises(ConfigError, match="config.train.windows=4"):
        streaming.window_edges(np.zeros(10, int), 0, 1, 4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_batches_hold_each_example_once_in_the_order_of_time_window_by_window(seed):
    dataset = random_dataset(seed, users=12, events=20, features=False)
    config = Config(
        data=DataConfig(max_length=20, row_length=48, actions=("watched=1", "liked=1")),
        train=TrainConfig(batch_users=6, session_gap=GAP),
    )
    edges = streaming.window_edges(
        dataset.events.timestamp,
        int(dataset.events.timestamp.min()),
        int(dataset.events.timestamp.max()) + 1,
        3,
    )
    rows = streaming.stream_batches(dataset, config, STREAM, edges, shards=2)
    assert rows.rows_computed % 2 == 0 and 0 < rows.fill <= 1
    assert [g[0] for g in rows.groups[1:]] == [g[1] for g in rows.groups[:-1]] and rows.groups[-1][
        1
    ] == len(rows.spans)
    labels, latest = 0, -1
    for step in range(rows.first_step(3)):
        window, k = rows.locate(step)
        assert rows.first_step(window) + k == step < rows.first_step(window + 1)
        batch = rows.batch(step)
        halves = [rows.batch(step, Share(p, 2)) for p in range(2)]
        np.testing.assert_array_equal(np.concatenate([h.item for h in halves]), batch.item)
        labels += int(batch.outcome_weight.sum())
        first, last = rows.groups[step]
        moments = dataset.events.timestamp[rows.spans.last_event[first:last]]
        assert moments.min() >= edges[window] and moments.max() < edges[window + 1]
        assert moments.min() >= latest
        latest = moments.max()
    assert labels == dataset.num_events
    assert rows.locate(rows.first_step(3)) == (3, 0)
