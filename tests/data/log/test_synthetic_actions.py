"""The generated actions: reproducible, predictable from counts and recency, not from shares."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from experiments.quality import synthetic_ranking_structure
from gr_jax.config import ConfigError, DataConfig, SyntheticConfig
from gr_jax.data.log import synthetic_actions
from gr_jax.data.log.preparation import prepare

SMALL = SyntheticConfig(num_users=400, num_items=50, mean_length=30, actions=True)


@pytest.fixture(scope="module")
def world():
    return synthetic_actions.simulate(SMALL)


@pytest.fixture(scope="module")
def measured():
    return synthetic_ranking_structure.measure(SyntheticConfig(num_users=2000, actions=True))


def test_same_config_gives_the_same_log_and_another_seed_another():
    log = synthetic_actions.generate(SMALL)
    assert log.equals(synthetic_actions.generate(SMALL))
    assert not log.equals(synthetic_actions.generate(dataclasses.replace(SMALL, seed=1)))


def test_the_log_has_users_in_turn_in_strict_time_order_and_ids_in_range():
    log = synthetic_actions.generate(SMALL)
    assert log.schema == {
        "user": pl.Int64,
        "item": pl.Int64,
        "timestamp": pl.Int64,
        "click": pl.Int64,
    }
    user, time = log["user"].to_numpy(), log["timestamp"].to_numpy()
    assert (np.diff(user) >= 0).all()
    assert (np.diff(time)[np.diff(user) == 0] > 0).all()
    assert set(user) == set(range(1, SMALL.num_users + 1))
    assert set(log["item"]) == set(range(1, SMALL.num_items + 1))
    assert set(log["click"]) == {0, 1}


def test_an_item_has_one_category_and_every_category_has_its_items(world):
    pairs = {
        (int(i), int(c))
        for i, c in zip(world.events(world.item), world.events(world.category), strict=True)
    }
    assert len(pairs) == SMALL.num_items
    per_category = np.bincount([category for _, category in pairs])
    assert set(per_category) == {2, 3} and len(per_category) == synthetic_actions.NUM_CATEGORIES


def test_what_the_world_says_of_the_past_is_what_a_loop_over_the_log_finds(world):
    for user in range(30):
        acts, met, last = {}, {}, {}
        for step in range(world.length[user]):
            category, now = world.category[user, step], world.timestamp[user, step]
            assert world.acts[user, step] == acts.get(category, 0)
            assert world.met[user, step] == met.get(category, 0)
            recency = (
                np.exp((last[category] - now) / synthetic_actions.DECAY) if category in last else 0
            )
            assert world.recency[user, step] == pytest.approx(recency)
            acts[category] = acts.get(category, 0) + world.click[user, step]
            met[category] = met.get(category, 0) + 1
            last[category] = now


def test_the_probability_rises_with_events_acts_and_recency_up_to_enough():
    none, enough = np.zeros(9, int), synthetic_actions.ENOUGH
    by_met = synthetic_actions.probability(np.arange(9), none, none.astype(float))
    by_acts = synthetic_actions.probability(np.full(9, 8), np.arange(9), none.astype(float))
    by_recency = synthetic_actions.probability(none, none, np.linspace(0, 1, 9))
    for rising in (by_met, by_acts, by_recency):
        assert (np.diff(rising) > 0).all() and rising[-1] > rising[0] + 0.2
    many = synthetic_actions.probability(
        np.array([enough, 50]), np.array([enough, 50]), np.zeros(2)
    )
    assert many[0] == many[1] == by_acts[-1]


def test_users_act_as_often_as_their_probability_says(world):
    probability, action = world.events(world.probability), world.events(world.click)
    for part in np.array_split(np.argsort(probability), 10):
        p = probability[part]
        assert abs(action[part].sum() - p.sum()) < 4.5 * np.sqrt((p * (1 - p)).sum())


def test_the_click_rate_does_not_drift_with_time():
    world = synthetic_actions.simulate(SyntheticConfig(num_users=4000, actions=True))
    action, time = world.events(world.click), world.events(world.timestamp)
    inside = time > np.quantile(time, 0.15)  # all histories are young in the first weeks
    rate = [
        action[part].mean()
        for part in np.array_split(np.flatnonzero(inside)[np.argsort(time[inside])], 4)
    ]
    assert max(rate) - min(rate) < 0.05


def test_counts_with_recency_come_close_to_the_oracle_and_shares_stay_far_above(measured):
    assert measured["oracle"] < 0.45
    assert measured["counts_and_recency"] < measured["oracle"] + 0.05
    assert measured["shares_and_recency"] > measured["oracle"] + 0.1
    assert (
        measured["shares_and_recency"] > measured["events_and_recency"] + 0.05
    )  # even of events alone
    assert (
        measured["events_and_recency"] > measured["counts_and_recency"] + 0.004
    )  # the acts tell more
    assert measured["shares"] > measured["counts"] + 0.05
    assert measured["recency"] > measured["shares_and_recency"] + 0.2
    assert 0.7 < measured["length"] < measured["constant"]
    assert measured["constant"] == pytest.approx(1, abs=0.04)
    assert 0.3 < measured["click_rate"] < 0.7


def test_normalised_entropy_is_one_for_the_rate_and_follows_a_hand_count():
    label = np.array([1, 0, 0, 0])
    assert synthetic_ranking_structure.normalised_entropy(np.full(4, 0.25), label) == pytest.approx(
        1
    )
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    by_hand = -(np.log(0.7) + 3 * np.log(0.9)) / 4 / entropy
    assert synthetic_ranking_structure.normalised_entropy(
        np.array([0.7, 0.1, 0.1, 0.1]), label
    ) == pytest.approx(by_hand)


def test_a_config_with_actions_prepares_a_dataset_that_has_them(tmp_path):
    config = DataConfig(
        source="synthetic",
        synthetic=SMALL,
        actions=("click=click",),
        prepared=str(tmp_path / "log"),
    )
    dataset, world = prepare(config), synthetic_actions.simulate(SMALL)
    assert dataset.meta["actions"] == ["click"]
    assert dataset.events.action is not None
    np.testing.assert_array_equal(dataset.events.action, world.events(world.click))
    np.testing.assert_array_equal(dataset.events.timestamp, world.events(world.timestamp))
    np.testing.assert_array_equal(dataset.events.item, world.events(world.item))


def test_a_log_without_actions_has_no_click(tmp_path):
    without = dataclasses.replace(SMALL, actions=False, num_items=300)
    config = DataConfig(
        source="synthetic",
        synthetic=without,
        actions=("click=click",),
        prepared=str(tmp_path / "log"),
    )
    with pytest.raises(
        ConfigError, match="'click' looks at 'click', the log has only 'user', 'item', 'timestamp'"
    ):
        prepare(config)


def test_fewer_items_than_categories_are_refused():
    with pytest.raises(ConfigError, match="data.synthetic.num_items=19: must be at least 20"):
        synthetic_actions.generate(dataclasses.replace(SMALL, num_items=19))
