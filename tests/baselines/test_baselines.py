"""Baselines against dense computations on small random logs."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from gr_jax.baselines import compare, ease, item_knn, markov
from gr_jax.baselines.questions import DenseScores, Questions, SparseScores, best_items
from gr_jax.baselines.training_events import popularity, user_items
from gr_jax.data.batches.splits import TrainingLog

ITEMS = 9


def random_log(seed: int, users: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and items of users with 1 to 12 events, among which are repeats."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 13, users))])
    return offsets, rng.integers(1, ITEMS + 1, offsets[-1]).astype(np.int32)


def questions(offsets: np.ndarray, item: np.ndarray, held_out: int) -> Questions:
    first = offsets[:-1][np.diff(offsets) >= 3]
    end = offsets[1:][np.diff(offsets) >= 3] - held_out
    return Questions(item, np.maximum(first, end - 5), first, end, ITEMS)


def brute_force(asked: Questions, scores: np.ndarray) -> list[float]:
    """Ranks by a table [Q, X + 1] of scores, question by question and item by item."""
    found = []
    for q, target in enumerate(asked.target):
        gone = set(asked.item[asked.seen_from[q] : target])
        wanted = asked.item[target]
        ranked = [i for i in range(1, ITEMS + 1) if i not in gone]
        above = sum(scores[q, i] >= scores[q, wanted] for i in ranked)
        found.append(np.inf if wanted in gone else float(above))
    return found


def training_lists(offsets: np.ndarray, item: np.ndarray) -> list[list[int]]:
    return [list(item[a : max(a, b - 2)]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


def training(offsets: np.ndarray, item: np.ndarray) -> TrainingLog:
    lists = training_lists(offsets, item)
    kept = np.concatenate([[0], np.cumsum([len(items) for items in lists])]).astype(np.int64)
    return TrainingLog(kept, np.array([i for items in lists for i in items], np.int32), ITEMS)


def dense_table(offsets: np.ndarray, item: np.ndarray) -> np.ndarray:
    table = np.zeros((len(offsets) - 1, ITEMS + 1))
    for user, items in enumerate(training_lists(offsets, item)):
        table[user, items] = 1
    return table


@given(seed=st.integers(0, 2**31), held_out=st.integers(1, 2))
@settings(max_examples=40)
def test_sparse_and_dense_ranks_are_those_of_counting_item_by_item(seed, held_out):
    offsets, item = random_log(seed)
    asked = questions(offsets, item, held_out)
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (len(asked.target), ITEMS + 1)).astype(np.float64)  # many ties
    scores[:, 0] = 0  # no item
    base = rng.integers(0, 3, ITEMS + 1).astype(np.float64)

    rows = iter(np.split(scores, np.arange(2, len(scores), 2)))  # blocks of two questions
    by_rows = SparseScores(base, lambda _: sparse.csr_array(next(rows)), block=2)
    np.testing.assert_array_equal(by_rows.ranks(asked), brute_force(asked, scores + base))

    dense = DenseScores(lambda _: (scores + base).astype(np.float32))
    np.testing.assert_array_equal(dense.ranks(asked), brute_force(asked, scores + base))

    whole = SparseScores(base, lambda _: sparse.csr_array(scores))
    for found in (best_items(asked, dense, k=4), best_items(asked, whole, k=4)):
        for q, row in enumerate(found):
            gone = set(asked.item[asked.seen_from[q] : asked.target[q]].tolist())
            left = {i: scores[q, i] + base[i] for i in range(1, ITEMS + 1) if i not in gone}
            values = sorted(left.values(), reverse=True)[:4]
            assert [left[i] for i in row.tolist() if i] == values, (
                "any of equal items may be listed"
            )
            assert len(set(row[row > 0])) == len(values) and (row[len(values) :] == 0).all()


def test_lists_of_a_larger_catalogue_are_those_of_sorting_all_scores():
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(1001.0), (30, 1)), axis=1)  # without ties
    item = rng.integers(1, 1001, 600).astype(np.int32)
    first = np.arange(0, 600, 20)
    asked = Questions(item, first, first, first + 19, 1000)
    found = best_items(asked, DenseScores(lambda _: scores.astype(np.float32)))
    for row, begin, of_user in zip(found, first, scores, strict=True):
        gone = set(item[begin : begin + 19].tolist())
        order = [int(i) for i in np.argsort(-of_user) if i and int(i) not in gone]
        assert row.tolist() == order[:10]


@given(seed=st.integers(0, 2**31), recency=st.sampled_from([1.0, 0.8]))
@settings(max_examples=30)
def test_item_knn_is_the_cosine_of_a_dense_table(seed, recency):
    offsets, item = random_log(seed)
    had = dense_table(offsets, item)
    together, users = had.T @ had, had.sum(0)
    expected = together / np.maximum(np.sqrt(np.outer(users, users)) + 20, 1e-9)
    np.fill_diagonal(expected, 0)

    plain, similar = item_knn.similarities(user_items(training(offsets, item)), (0.0, 20.0))
    np.testing.assert_allclose(similar.toarray(), expected, rtol=1e-6, atol=1e-7)
    assert ((plain.toarray() > 0) == (expected > 0)).all() and plain.max() <= 1 + 1e-6

    asked = questions(offsets, item, 1)
    weight = np.zeros((len(asked.target), ITEMS + 1))
    for q, (begin, end) in enumerate(zip(asked.begin, asked.target, strict=True)):
        for event in range(begin, end):  # a later event of the same item replaces an earlier one
            weight[q, item[event]] = recency ** (end - 1 - event)
    np.testing.assert_allclose(asked.histories(recency).toarray(), weight, rtol=1e-6)


def test_item_knn_keeps_the_nearest_neighbours_where_there_is_no_room_for_all(monkeypatch):
    offsets, item = random_log(3, users=60)
    had = user_items(training(offsets, item))
    whole = item_knn.similarities(had, (0.0,))[0].toarray()
    monkeypatch.setattr(item_knn, "BLOCK", 4)
    part = item_knn._largest(item_knn.similarities(had, (0.0,))[0], 3).toarray()

    assert ((part > 0).sum(1) <= 3).all()
    for row, kept in zip(whole, part, strict=True):
        assert kept[kept > 0].min(initial=2) >= np.sort(row)[::-1][3]
        np.testing.assert_array_equal(kept[kept > 0], row[kept > 0])


@given(seed=st.integers(0, 2**31), penalty=st.sampled_from([1.0, 100.0]))
@settings(max_examples=30)
def test_ease_is_the_closed_form_in_float64(seed, penalty):
    offsets, item = random_log(seed)
    had = dense_table(offsets, item)
    inverse = np.linalg.inv(had.T @ had + penalty * np.eye(ITEMS + 1))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)

    got = ease.weights(user_items(training(offsets, item)), penalty)

    np.testing.assert_allclose(got, expected, atol=2e-5)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=30)
def test_markov_counts_what_came_next(seed):
    offsets, item = random_log(seed)
    expected = np.zeros((ITEMS + 1, ITEMS + 1))
    for items in training_lists(offsets, item):
        for first, second in zip(items[:-1], items[1:], strict=True):
            expected[first, second] += 1

    following = markov.transitions(training(offsets, item))

    np.testing.assert_array_equal(following.toarray(), expected)
    asked, count = questions(offsets, item, 1), popularity(training(offsets, item))
    scores = expected[item[asked.target - 1]] + 1e-4 * count
    assert markov.scores(following, count).ranks(asked).tolist() == brute_force(asked, scores)


def test_each_baseline_is_judged_with_the_settings_that_are_best_on_validation():
    offsets, item = random_log(5, users=40)
    log, told = training(offsets, item), []
    valid, test = questions(offsets, item, 2), questions(offsets, item, 1)
    metric = lambda ranks: float(np.mean(1 / ranks))

    judged = compare.compare(log, valid, test, metric, told.append)

    assert list(judged) == ["popularity", "Markov", "item-kNN", "EASE"]
    knn = [f"item-kNN {number}/4" for number in (1, 2, 3, 4)]
    assert told == ["popularity", "Markov", *knn, "EASE 1/3", "EASE 2/3", "EASE 3/3"]
    for baseline in compare.all_baselines(log):
        best, scores = judged[baseline.name], baseline.learn()
        assert metric(scores.ranks(valid)) <= best.valid
        if baseline.settings == best.settings:
            assert metric(scores.ranks(valid)) == best.valid
            np.testing.assert_array_equal(scores.ranks(test), best.test)
            np.testing.assert_array_equal(best_items(test, scores), best.best)


def test_of_a_large_catalogue_the_penalties_beyond_the_best_are_not_tried(monkeypatch):
    offsets, item = random_log(5, users=40)
    log, told = training(offsets, item), []
    asked = questions(offsets, item, 1)
    by_penalty = {100.0: 0.4, 250.0: 0.3, 500.0: 0.9}
    learnt = lambda had, penalty: penalty
    monkeypatch.setattr(ease, "weights", learnt)
    rank_of = lambda table: SimpleNamespace(ranks=lambda _: np.array([by_penalty[table]]))
    monkeypatch.setattr(ease, "scores", rank_of)
    monkeypatch.setattr(compare, "LISTED", 0)
    found = {}
    for many in (ITEMS, ITEMS - 1):
        monkeypatch.setattr(ease, "MANY_ITEMS", many)
        told.clear()
        judged = compare.compare(log, asked, asked, lambda ranks: float(ranks[0]), told.append)
        found[many] = judged["EASE"].settings["lambda"], told[-1]
    assert found == {ITEMS: (500, "EASE 3/3"), ITEMS - 1: (100, "EASE 2/3")}


@pytest.mark.parametrize("dense_items", [0, 100])
def test_item_knn_ranks_alike_by_sparse_and_dense_tables(dense_items, monkeypatch):
    monkeypatch.setattr(item_knn, "DENSE_ITEMS", dense_items)
    offsets, item = random_log(8, users=50)
    [similar] = item_knn.similarities(user_items(training(offsets, item)), (0.0,))
    asked = questions(offsets, item, 1)
    scores = asked.histories(0.8).toarray().astype(np.float64) @ similar.toarray()
    assert item_knn.scores(similar, 0.8).ranks(asked).tolist() == brute_force(asked, scores)
