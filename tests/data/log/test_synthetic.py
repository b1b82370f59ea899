"""The generated log: reproducible, well-formed, predictable from sequence and time together."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from experiments.quality import synthetic_structure
from gr_jax.config import ConfigError, SyntheticConfig
from gr_jax.data.log import synthetic

SMALL = SyntheticConfig(num_users=400, num_items=300, mean_length=30)


@pytest.fixture(scope="module")
def world():
    return synthetic.simulate(SMALL)


@pytest.fixture(scope="module")
def log():
    return synthetic.generate(SMALL)


def real_events(world):
    return np.arange(world.item.shape[1]) < world.length[:, None]


def test_same_config_gives_the_same_log(log):
    assert log.equals(synthetic.generate(SMALL))


def test_another_seed_gives_another_log(log):
    assert not log.equals(synthetic.generate(dataclasses.replace(SMALL, seed=1)))


def test_columns_are_int64_and_ids_are_in_range(log):
    assert log.schema == {"user": pl.Int64, "item": pl.Int64, "timestamp": pl.Int64}
    assert log["user"].unique().to_list() == list(range(1, SMALL.num_users + 1))
    assert log["item"].min() >= 1
    assert log["item"].max() <= SMALL.num_items


def test_time_rises_strictly_within_each_user(log):
    same_user = np.diff(log["user"].to_numpy()) == 0
    assert (np.diff(log["user"].to_numpy()) >= 0).all()
    assert (np.diff(log["timestamp"].to_numpy())[same_user] > 0).all()


def test_mean_length_is_as_configured_and_nobody_is_too_short(log):
    lengths = log.group_by("user").len()["len"]
    assert lengths.min() >= synthetic.MIN_LENGTH
    assert lengths.mean() == pytest.approx(SMALL.mean_length, rel=0.1)


def test_hardly_anyone_takes_an_item_twice(log):
    assert log.select("user", "item").n_unique() >= 0.995 * len(log)


def test_extreme_sizes_generate():
    tiny = SyntheticConfig(num_users=1, num_items=2 * synthetic.TOPIC_ITEMS, mean_length=5)
    assert len(synthetic.generate(tiny)) >= 5
    longest = dataclasses.replace(tiny, num_users=50, mean_length=synthetic.MAX_LENGTH)
    full = synthetic.generate(longest)
    assert full.select("user", "item").n_unique() >= 0.95 * len(full)


@pytest.mark.parametrize("size", [{"num_items": 100}, {"mean_length": 1000}])
def test_sizes_without_room_for_the_structure_are_refused(size):
    (name,) = size
    with pytest.raises(ConfigError, match=f"data.synthetic.{name}"):
        synthetic.generate(dataclasses.replace(SMALL, **size))


def test_minutes_and_two_days_keep_the_topic_and_one_day_changes_it(world):
    days = synthetic_structure.days_since_previous(world)[:, 1:]
    topic = world.due // synthetic.TOPIC_SHELVES
    same = (topic[:, 1:] == topic[:, :-1])[real_events(world)[:, 1:]]
    days = days[real_events(world)[:, 1:]]
    assert set(days) == {0, 1, 2}
    np.testing.assert_array_equal(same, days != 1)


def test_events_come_from_the_due_shelf_except_noise(world):
    hit = (world.shelves[world.due] == world.item[..., None]).any(axis=-1)[real_events(world)]
    assert hit.mean() == pytest.approx(1 - synthetic.P_NOISE, abs=0.02)


def test_a_topic_goes_on_at_the_shelf_after_the_one_it_was_left_at(world):
    moved_on, stayed = [], []
    for user in range(50):
        place = {}
        for item, due in zip(world.item[user], world.due[user], strict=True):
            topic, shelf = divmod(due, synthetic.TOPIC_SHELVES)
            if topic in place:
                before, taken = place[topic]
                (moved_on if taken else stayed).append((shelf - before) % synthetic.TOPIC_SHELVES)
            place[topic] = shelf, item in world.shelves[due]
        assert len(place) == 2
    assert (
        np.mean(np.array(moved_on) == 1) > 0.98
    )  # the rest is noise that happens to be of the due shelf
    assert stayed and not np.any(stayed)


def test_elapsed_days_fall_into_separate_time_buckets():
    """A bias per logarithmic bucket (base e^0.301) separates 1, 2, 3 and 4 elapsed days."""
    days, jitter = np.arange(1, 5), synthetic.DAY_JITTER
    spread = jitter * np.sqrt(days / 3)  # standard deviation of a sum of uniform jitters
    low, high = (np.log(days * synthetic.DAY + sign * spread) / 0.301 for sign in (-1, 1))
    assert (high[:-1] < low[1:]).all()


def test_only_order_and_time_together_predict_the_log():
    measured = synthetic_structure.measure(
        dataclasses.replace(SMALL, num_users=1000, num_items=600)
    )
    assert measured["popularity"] < 0.1
    assert 0.2 < measured["markov_last_item"] < measured["best_without_time"] + 0.02
    assert (
        measured["markov_last_item_and_gap"] < measured["best_without_time"] + 0.02
    )  # time alone is no help
    assert measured["best_without_time"] < 0.6
    assert measured["best_with_time"] > 0.8


def test_ceilings_count_what_fits_into_the_top():
    """Two users at their last event: one's item is on the due shelf, the other's on neither."""
    shelves = np.arange(1, 9).reshape(4, 2)
    item = np.array([[1, 3, 4], [1, 3, 8]])
    shelf = np.array([[0, 1, 1], [0, 1, 1]])
    world = synthetic.World(
        item=item,
        timestamp=np.cumsum(np.ones_like(item), axis=1),
        length=np.array([3, 3]),
        due=shelf,
        other=np.full_like(shelf, 2),
        same_topic=np.array([[False, False, False]] * 2),
        shelves=shelves,
    )
    assert synthetic.ceilings(world, top=1) == {"order": 0.0, "order_and_time": 0.5}
    assert synthetic.ceilings(world, top=3) == {"order": 0.5, "order_and_time": 0.5}
