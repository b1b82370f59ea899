import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.config import ConfigError, DataConfig, EvaluateConfig
from gr_jax.data.batches import epochs, tokenizer
from gr_jax.data.batches.batch import ADDED_ROW, Share
from gr_jax.data.batches.evaluation import evaluation_batches
from gr_jax.data.batches.loader import read_batches
from gr_jax.data.dataset import Catalogue, Dataset, Events

CONFIG = DataConfig(max_length=8, row_length=16)


def make_log(counts: list[int], seed: int = 0) -> Dataset:
    """A log whose item ids are unique, so that every token can be traced to its event."""
    rng = np.random.default_rng(seed)
    total = sum(counts)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    gaps = rng.integers(0, 5000, total)
    item = np.arange(1, total + 1, dtype=np.int32)
    events = Events(offsets, item, timestamp=1_000_000_000 + np.cumsum(gaps))
    return Dataset(Catalogue(Path("."), {"items": total}), events)


def unpack(batch, dataset) -> dict[int, list[tuple]]:
    """{user: [(item, time, query time, position, label), ..]} read token by token."""
    users = {}
    for row in range(batch.item.shape[0]):
        for column in np.flatnonzero(batch.segment[row]):
            user = int(
                np.searchsorted(dataset.events.offsets, batch.item[row, column] - 1, side="right")
                - 1
            )
            token = tuple(
                int(field[row, column])
                for field in (batch.item, batch.time, batch.query_time, batch.position, batch.label)
            )
            users.setdefault((user, row, int(batch.segment[row, column])), []).append(token)
    assert len({user for user, _, _ in users}) == len(users), "a user is in two segments"
    return {user: tokens for (user, _, _), tokens in users.items()}


def expected_tokens(dataset, split: str) -> dict[int, list[tuple]]:
    """The same, from the log by its definition."""
    users = {}
    for user in range(len(dataset.events.offsets) - 1):
        first, end = (
            dataset.events.offsets[user],
            dataset.events.offsets[user + 1] - {"train": 3, "valid": 2, "test": 1}[split],
        )
        if (
            end - first < (1 if split == "train" else 1)
            or dataset.events.offsets[user + 1] - first < 3
        ):
            continue
        begin = max(first, end - CONFIG.max_length)
        t = dataset.events.timestamp
        users[user] = [
            (
                int(dataset.events.item[e]),
                int(t[e] - t[begin]),
                int(t[e + 1] - t[begin]),
                int(e - begin),
                int(dataset.events.item[e + 1]),
            )
            for e in range(begin, end)
        ]
    return users


counts_of_users = st.lists(st.integers(1, 20), min_size=1, max_size=30).map(
    lambda counts: [*counts, 6]
)


@settings(max_examples=30, deadline=None)
@given(counts_of_users, st.integers(1, 10))
def test_an_epoch_holds_every_training_token_once(counts, batch_users):
    dataset = make_log(counts)
    rows = epochs.retrieval_batches(dataset, CONFIG, batch_users=batch_users)
    seen = {}
    for index in range(rows.steps(0), 2 * rows.steps(0)):
        seen |= unpack(rows.batch(index), dataset)
    assert seen == expected_tokens(dataset, "train")


@settings(max_examples=30, deadline=None)
@given(counts_of_users, st.sampled_from(["valid", "test"]))
def test_evaluation_asks_each_user_once_from_the_last_token(counts, split):
    dataset = make_log(counts)
    rows = evaluation_batches(dataset, CONFIG, EvaluateConfig(batch_users=4), split)
    expected = expected_tokens(dataset, split)
    asked = []
    for index in range(len(rows)):
        batch, queries, users = rows.batch(index)
        assert {u: t for u, t in unpack(batch, dataset).items() if u in users.tolist()} == {
            u: expected[u] for u in users.tolist()
        }
        for q, user in enumerate(users.tolist()):
            last_item, *_, target = expected[user][-1]
            assert batch.item.reshape(-1)[queries.token[q]] == last_item
            assert queries.target[q] == target
            history = dataset.events.item[dataset.events.offsets[user] : target - 1]
            assert sorted(queries.seen[q][queries.seen[q] != 0].tolist()) == history.tolist()
        assert not queries.target[len(users) :].any()
        assert (
            rows.history(users) == dataset.events.lengths[users] - (2 if split == "valid" else 1)
        ).all()
        asked += users.tolist()
    assert sorted(asked) == sorted(expected)


def test_excluding_the_visible_leaves_older_items_in_the_ranking():
    dataset = make_log([20, 5])
    rows = evaluation_batches(dataset, CONFIG, EvaluateConfig(exclude="visible"), "test")
    _, queries, users = rows.batch(0)
    seen = queries.seen[users.tolist().index(0)]
    assert sorted(seen[seen != 0].tolist()) == list(range(12, 20))
    rows = evaluation_batches(dataset, CONFIG, EvaluateConfig(exclude="none"), "test")
    assert not rows.batch(0)[1].seen.any()


def test_a_split_without_a_positive_event_is_an_error_that_names_the_action():
    dataset = make_log([6, 7, 8])
    action = np.ones(len(dataset.events.item), np.int32)
    action[dataset.events.offsets[1:] - 1] = 2
    catalogue = Catalogue(dataset.folder, dataset.meta | {"actions": ["click", "like"]})
    dataset = Dataset(catalogue, dataclasses.replace(dataset.events, action=action))
    clicks = dataclasses.replace(tokenizer.ITEMS, positive_bit=0)
    everyone = evaluation_batches(dataset, CONFIG, EvaluateConfig(), "valid", clicks)
    assert len(everyone.spans) == 3
    with pytest.raises(
        ConfigError, match="config.loss.positive='click': the test event of no user"
    ) as caught:
        evaluation_batches(dataset, CONFIG, EvaluateConfig(), "test", clicks)
    assert "\n" not in str(caught.value)


def test_batches_depend_on_seed_and_epoch_only():
    dataset = make_log([10] * 40)
    one, same, other = (
        epochs.retrieval_batches(dataset, CONFIG, batch_users=8, seed=seed) for seed in (1, 1, 2)
    )
    first, later = one.batch(3), one.batch(3 + one.steps(0))
    np.testing.assert_array_equal(first.item, same.batch(3).item)
    assert not np.array_equal(first.item, other.batch(3).item)
    assert not np.array_equal(first.item, later.item)


@pytest.mark.parametrize("shards", [2, 3, 4, 6])
def test_a_batch_for_several_devices_has_the_rows_of_one_device_and_empty_ones(shards):
    dataset = make_log([10] * 40)
    one = epochs.retrieval_batches(dataset, CONFIG, batch_users=8)
    several = epochs.retrieval_batches(dataset, CONFIG, batch_users=8, shards=shards)
    assert several.rows_computed % shards == 0 and several.steps(0) == one.steps(0)
    for step in (0, 1, one.steps(0) + 1):
        whole, parted = one.batch(step), several.batch(step)
        assert parted.row is not None and whole.row is None
        real = np.flatnonzero(parted.row != ADDED_ROW)
        in_order = real[np.argsort(parted.row[real])]
        for name in ("item", "time", "query_time", "position", "segment", "label"):
            values = np.asarray(getattr(parted, name))
            np.testing.assert_array_equal(values[in_order], getattr(whole, name))
            assert not values[parted.row == ADDED_ROW].any()


def test_processes_share_the_rows_of_the_same_global_batch():
    dataset = make_log([10] * 40)
    rows = epochs.retrieval_batches(dataset, CONFIG, batch_users=8, shards=4)
    whole = rows.batch(2)
    parts = [rows.batch(2, Share(p, 2, device_multiple=4)) for p in range(2)]
    for name in ("item", "time", "query_time", "position", "segment", "label", "row"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name)
        )


def test_the_iterator_resumes_at_any_batch():
    dataset = make_log([10] * 40)
    rows = epochs.retrieval_batches(dataset, CONFIG, batch_users=8)
    whole = [batch.item for batch in read_batches(rows, 0, 12)]
    resumed = [batch.item for batch in read_batches(rows, 7, 12)]
    assert len(whole) == 12
    np.testing.assert_array_equal(np.stack(whole[7:]), np.stack(resumed))


def test_a_validation_sample_is_fixed():
    dataset = make_log([6] * 50)
    draws = [
        evaluation_batches(dataset, CONFIG, EvaluateConfig(valid_users=10), "valid").spans.user
        for _ in range(2)
    ]
    assert len(draws[0]) == 10
    np.testing.assert_array_equal(draws[0], draws[1])


def test_times_beyond_68_years_are_held_at_the_limit():
    dataset = make_log([6])
    dataset.events.timestamp[3:] += 3 * 10**9
    batch = epochs.retrieval_batches(dataset, CONFIG, batch_users=1).batch(0)
    assert batch.query_time.max() == np.iinfo(np.int32).max


def test_a_batch_is_a_pytree_of_its_fields():
    dataset = make_log([6])
    batch = epochs.retrieval_batches(dataset, CONFIG, batch_users=1).batch(0)
    assert len(jax.tree.leaves(batch)) == 6
    with pytest.raises(AttributeError):
        batch.item = None  # pyright: ignore


@pytest.mark.parametrize("selection", ["greedy", "random", "weighted"])
def test_stochastic_length_packs_each_epoch_anew_and_computes_only_what_it_keeps(selection):
    dataset = make_log([40] * 60 + [6] * 20)
    settings = {"stochastic_length_alpha": 1.5, "stochastic_length_selection": selection}
    config = DataConfig(max_length=32, row_length=32, **settings)
    rows = epochs.retrieval_batches(dataset, config, batch_users=8, seed=3)
    whole = epochs.retrieval_batches(
        dataset, dataclasses.replace(config, stochastic_length_alpha=2.0), batch_users=8
    )
    kept = []
    for epoch in range(3):
        steps = range(rows.first_step(epoch), rows.first_step(epoch + 1))
        assert [rows.locate(step) for step in steps] == [(epoch, k) for k in range(len(steps))]
        batches = [rows.batch(step) for step in steps]
        tokens = sum(int((batch.segment > 0).sum()) for batch in batches)
        assert tokens == rows.epoch(epoch).spans.length.sum()
        kept.append(tokens)
        for batch in batches:
            # Items count up in the log: a label is above its item, and is the next kept, if any.
            inside = (batch.segment[:, 1:] == batch.segment[:, :-1]) & (batch.segment[:, 1:] > 0)
            assert (batch.label[:, :-1][inside] == batch.item[:, 1:][inside]).all()
            assert (batch.label[batch.segment > 0] > batch.item[batch.segment > 0]).all()
    assert len(set(kept)) > 1
    everything = whole.spans.length.sum()
    assert max(kept) < 0.75 * everything
    assert rows.steps(0) * rows.batch_rows < 0.8 * whole.steps(0) * whole.batch_rows


def test_the_batches_of_a_run_with_stochastic_length_do_not_depend_on_where_it_resumes():
    dataset = make_log([40] * 30)
    config = DataConfig(max_length=32, row_length=32, stochastic_length_alpha=1.6)
    run, resumed = (
        epochs.retrieval_batches(dataset, config, batch_users=8, seed=1) for _ in range(2)
    )
    straight = [run.batch(step) for step in range(run.first_step(2) + 1)]
    np.testing.assert_array_equal(resumed.batch(run.first_step(2)).item, straight[-1].item)
    assert resumed.locate(0) == (0, 0)


def test_the_shards_of_a_batch_do_equal_work_on_the_rows_that_one_device_has():
    rng = np.random.default_rng(0)
    dataset = make_log(np.clip(rng.lognormal(2.5, 1.0, 800), 4, 60).astype(int).tolist())
    config = DataConfig(max_length=48, row_length=64)
    one = epochs.retrieval_batches(dataset, config, batch_users=200, shards=1, seed=1)
    four = epochs.retrieval_batches(dataset, config, batch_users=200, shards=4, seed=1)
    one = dataclasses.replace(one, batch_rows=four.batch_rows)
    for step in (0, 1, four.steps(0)):
        rows = [{tuple(row) for row in plan.batch(step).item.tolist()} for plan in (one, four)]
        assert rows[0] == rows[1]
    before, after = four.imbalance(token_cost=1.0, pair_cost=1.0)
    assert before > 1.1 > 1.02 > after
    assert one.imbalance(token_cost=1.0, pair_cost=1.0) == (1.0, 1.0)


def test_balanced_batches_depend_on_seed_and_step_only():
    dataset = make_log([*range(4, 40)])
    plans = [
        epochs.retrieval_batches(dataset, CONFIG, batch_users=8, shards=2, seed=3) for _ in range(2)
    ]
    plans[0].batch(1)
    np.testing.assert_array_equal(plans[0].batch(5).item, plans[1].batch(5).item)
