import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.config import ConfigError, EvaluateConfig, RankingConfig
from gr_jax.data.batches import sequences
from tests.training.random_log import random_log


def events_of(split: str, counts: list[int], max_length: int) -> dict[int, tuple[list[int], int]]:
    """{user: (input events, event after the last input)} with events numbered inside their user."""
    log = random_log(np.random.default_rng(0), counts=np.array(counts), num_items=9)
    offsets = log.events.offsets
    spans = sequences.spans(log.events, EvaluateConfig(), split, max_length=max_length)
    result = {}
    for user, begin, length in zip(spans.user, spans.begin, spans.length, strict=True):
        first = int(begin - offsets[user])
        result[int(user)] = (list(range(first, first + int(length))), first + int(length))
    return result


def test_the_last_event_is_the_test_target_the_one_before_validates_the_rest_trains():
    assert events_of("test", [6], 10) == {0: ([0, 1, 2, 3, 4], 5)}
    assert events_of("valid", [6], 10) == {0: ([0, 1, 2, 3], 4)}
    assert events_of("train", [6], 10) == {0: ([0, 1, 2], 3)}


def test_inputs_are_the_most_recent_events():
    assert events_of("test", [6], 2) == {0: ([3, 4], 5)}
    assert events_of("train", [6], 2) == {0: ([1, 2], 3)}


def test_no_split_ever_uses_an_event_of_a_later_one():
    for counts in ([3, 4, 5, 9], [20, 3]):
        train, valid, test = (events_of(split, counts, 50) for split in ("train", "valid", "test"))
        for user, (_, target) in test.items():
            assert target == counts[user] - 1
        for user, (inputs, target) in valid.items():
            assert target == counts[user] - 2 and max(inputs) < target
        for user, (_, last_label) in train.items():
            assert last_label == counts[user] - 3


def test_short_users_are_left_out_of_the_splits_they_have_no_target_for():
    assert list(events_of("train", [1, 2, 3, 4], 10)) == [3]
    assert list(events_of("valid", [1, 2, 3, 4], 10)) == [2, 3]
    assert list(events_of("test", [1, 2, 3, 4], 10)) == [2, 3]


def test_a_log_of_short_users_only_is_an_error():
    with pytest.raises(ConfigError, match="no user has the 4 events that the train split needs"):
        events_of("train", [2, 3], 10)


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    labelled=st.floats(0, 1),
    max_length=st.integers(1, 12),
)
def test_every_event_of_a_stretch_is_a_label_once_and_sees_half_the_maximum_length(
    counts, labelled, max_length
):
    offsets = np.concatenate([[0], np.cumsum(counts)])
    low = offsets[:-1] + (np.diff(offsets) * labelled).astype(int)
    spans = sequences.label_spans(offsets, low, offsets[1:], max_length=max_length)
    assert (spans.length >= 1).all() and (spans.length <= max_length).all()
    seen = []
    for user, first, begin, length, label in zip(
        spans.user, spans.first, spans.begin, spans.length, spans.label_from, strict=True
    ):
        assert first == offsets[user] <= begin <= label < begin + length <= offsets[user + 1]
        assert begin == first or label - begin >= max_length // 2
        seen += range(label, begin + length)
    expected = np.concatenate([np.arange(a, b) for a, b in zip(low, offsets[1:], strict=True)])
    np.testing.assert_array_equal(np.sort(seen), expected)


def test_time_bounds_cut_the_log_at_shares_of_its_events():
    times = np.arange(100) * 10
    bounds = sequences.time_bounds(times, RankingConfig(valid_from=0.5, test_from=0.9))
    assert bounds == {"train": (0, 500), "valid": (500, 900), "test": (900, 991)}


@pytest.mark.parametrize(
    ("times", "named"),
    [(np.zeros(10, int), "valid_from=0.5"), (np.array([0, 1, 1, 1, 1, 1]), "valid_from=0.1")],
)
def test_a_time_split_that_leaves_a_side_empty_is_told(times, named):
    config = RankingConfig(valid_from=float(named.partition("=")[2]), test_from=0.9)
    with pytest.raises(ConfigError, match=f"ranking.{named} leaves no event to train"):
        sequences.time_bounds(times, config)


def test_label_ranges_follow_the_times():
    offsets, times = np.array([0, 3, 5]), np.array([1, 5, 9, 4, 6])
    first, last = sequences.labels_between(offsets, times, 5, 9)
    np.testing.assert_array_equal(first, [1, 4])
    np.testing.assert_array_equal(last, [2, 5])
