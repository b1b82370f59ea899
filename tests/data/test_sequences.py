import numpy as np
import pytest

from gr_jax.config import ConfigError
from gr_jax.data import sequences


def events_of(split: str, counts: list[int], max_length: int) -> dict[int, tuple[list[int], int]]:
    """{user: (input events, event after the last input)} with events numbered inside their user."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    spans = sequences.spans(offsets, split, max_length=max_length)
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
        sequences.spans(np.array([0, 2, 5]), "train", max_length=10)
