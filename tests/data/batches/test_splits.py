"""The splits against plain loops over random small logs."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.config import ConfigError, DataConfig, EvaluateConfig
from gr_jax.data.batches import epochs, sequences, splits
from gr_jax.data.batches.evaluation import evaluation_batches
from gr_jax.data.dataset import Dataset, Events
from tests.training.random_log import random_log

MAX_LENGTH = 4
DATA = DataConfig(max_length=MAX_LENGTH, row_length=8)


def log_of(times: list[list[int]]) -> Dataset:
    """A log with an item of its own for each event, of users with events at these times."""
    counts = np.array([len(user) for user in times])
    log = random_log(np.random.default_rng(0), counts=counts, num_items=int(counts.sum()))
    timestamp = np.array([t for user in times for t in sorted(user)], np.int64)
    item = np.arange(1, len(timestamp) + 1, dtype=np.int32)
    return Dataset(log.catalogue, Events(log.events.offsets, item, timestamp))


def by_hand(log: Dataset, split: str, moments: tuple[int, int]) -> dict[int, tuple[list, int]]:
    """{user: (all items before the target, the target)}; of training the last label."""
    low, high = moments
    found = {}
    for user, (a, b) in enumerate(zip(log.events.offsets, log.events.offsets[1:], strict=False)):
        events = [(int(log.events.timestamp[e]), int(log.events.item[e])) for e in range(a, b)]
        if split == "train":
            *past, last = [item for time, item in events if time < low] or [0]
            asked = [last] if past else []
        else:
            since, until = (low, high) if split == "valid" else (high, 10**18)
            past = [item for time, item in events if time < since]
            asked = [item for time, item in events if since <= time < until]
            # an event of the test part is no validation target, but ends the validation part
        if past and asked:
            found[user] = (past, asked[0])
    return found


times_of_users = st.lists(
    st.lists(st.integers(0, 30), min_size=1, max_size=8), min_size=2, max_size=9
)


@settings(max_examples=150)
@given(times_of_users, st.floats(0.1, 0.6), st.floats(0.65, 0.95))
def test_a_split_by_time_is_that_of_looking_at_every_event(times, valid_from, test_from):
    log = log_of(times)
    evaluate = EvaluateConfig(split="time", valid_from=valid_from, test_from=test_from)
    ordered = sorted(t for user in times for t in user)
    moments = tuple(ordered[int(len(ordered) * share)] for share in (valid_from, test_from))
    if not ordered[0] < moments[0] < moments[1]:
        with pytest.raises(ConfigError, match="config.evaluate.valid_from=.*there is no event"):
            splits.held_out(log.events, evaluate)
        return
    assert splits.held_out(log.events, evaluate).moments == moments

    for split in ("train", "valid", "test"):
        expected = by_hand(log, split, moments)
        if not expected:
            with pytest.raises(ConfigError, match="no user has"):
                sequences.spans(log.events, evaluate, split, max_length=MAX_LENGTH)
            continue
        spans = sequences.spans(log.events, evaluate, split, max_length=MAX_LENGTH)
        assert spans.user.tolist() == list(expected)
        for user, first, begin, length in zip(
            spans.user, spans.first, spans.begin, spans.length, strict=True
        ):
            past, target = expected[int(user)]
            assert log.events.item[begin : begin + length].tolist() == past[-MAX_LENGTH:]
            assert log.events.item[begin + length] == target
            assert first == log.events.offsets[user]

    training = splits.training_log(log, evaluate)
    assert len(training.offsets) == log.num_users + 1
    for user in range(log.num_users):
        kept = training.item[training.offsets[user] : training.offsets[user + 1]].tolist()
        a, b = log.events.offsets[user], log.events.offsets[user + 1]
        assert kept == [
            int(log.events.item[e]) for e in range(a, b) if log.events.timestamp[e] < moments[0]
        ]


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_batches_of_a_split_by_time_have_no_later_event(seed):
    rng = np.random.default_rng(seed)
    log = log_of([rng.integers(0, 1000, rng.integers(2, 20)).tolist() for _ in range(30)])
    evaluate = EvaluateConfig(split="time", batch_users=8)
    time_of = np.concatenate([[-1], log.events.timestamp])  # by item
    valid, test = splits.moments_of(log.events.timestamp, evaluate)

    plan = epochs.retrieval_batches(
        log,
        dataclasses.replace(DATA, stochastic_length_alpha=1.5),
        batch_users=8,
        evaluate=evaluate,
    )
    for index in range(plan.steps(0)):
        batch = plan.batch(index)
        assert (time_of[batch.item] < valid).all() and (time_of[batch.label] < valid).all()
    assert (time_of[log.events.item[plan.spans.following()]] < valid).all()

    for split, moment, until in (("valid", valid, test), ("test", test, 10**9)):
        rows = evaluation_batches(log, DATA, evaluate, split)
        for index in range(len(rows)):
            batch, queries, _ = rows.batch(index)
            asked = time_of[queries.target[queries.target > 0]]
            assert ((asked >= moment) & (asked < until)).all()
            assert (time_of[batch.item] < moment).all() and (time_of[queries.seen] < moment).all()


def test_moments_may_be_given_as_times():
    log = log_of([[0, 86_400, 2 * 86_400, 3 * 86_400]])
    evaluate = EvaluateConfig(split="time", valid_time="1970-01-03", test_time="1970-01-04T00:00Z")
    held = splits.held_out(log.events, evaluate)
    assert held.moments == (2 * 86_400, 3 * 86_400)
    assert held.target["valid"].tolist() == [2] and held.target["test"].tolist() == [3]


@pytest.mark.parametrize(
    ("valid", "test", "said"),
    [
        ("1970-01-01", "1970-01-02", "valid_time='1970-01-01': there is no event before it"),
        ("1970-01-02", "1980-01-01", "test_time='1980-01-01': there is no event from it on"),
        ("1970-01-03", "1970-01-02", "there is no event from it to test_time='1970-01-02'"),
    ],
)
def test_a_moment_that_leaves_a_part_empty_is_told_with_the_time_of_the_log(valid, test, said):
    log = log_of([[0, 86_400, 2 * 86_400]])
    evaluate = EvaluateConfig(split="time", valid_time=valid, test_time=test)
    with pytest.raises(ConfigError, match=said) as caught:
        splits.held_out(log.events, evaluate)
    assert "the log is from 1970-01-01 to 1970-01-03" in str(caught.value)


def test_a_split_that_asks_nobody_is_an_error_that_names_a_remedy():
    log = log_of([[1, 2, 3], [50], [90]])
    evaluate = EvaluateConfig(split="time", valid_from=0.5, test_from=0.9)
    with pytest.raises(ConfigError, match="so nobody can be asked for the test split: choose"):
        sequences.spans(log.events, evaluate, "test", max_length=4)
