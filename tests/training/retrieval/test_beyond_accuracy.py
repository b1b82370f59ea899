import math

import numpy as np
import pytest

from gr_jax.training.retrieval.beyond_accuracy import by_popularity, of_lists, popularity_part


def test_head_mid_and_tail_have_a_third_of_the_events_each():
    popularity = np.array([0, 1, 6, 0, 3, 1, 1])  # 12 events; the first entry is no item
    assert popularity_part(popularity.astype(float)).tolist() == [2, 2, 0, 2, 1, 2, 2]
    assert (popularity_part(np.zeros(4)) == 2).all()
    equal = np.append(0, np.ones(300))
    assert np.bincount(popularity_part(equal)[1:]).tolist() == [100, 100, 100]


def test_accuracy_by_popularity_is_that_of_the_targets_of_each_part():
    popularity = np.array([0, 6.0, 3.0, 3.0, 0.0])
    found = by_popularity(np.array([1, 20, 1, np.inf]), np.array([1, 1, 2, 4]), popularity)
    assert found["hr@10/popularity_head"] == 0.5 and found["queries/popularity_head"] == 2
    assert found["ndcg@10/popularity_mid"] == 1 and found["hr@10/popularity_tail"] == 0
    assert found["cold"] == 0.25


def test_coverage_and_novelty_are_counted_from_the_lists():
    popularity = np.array([0, 4.0, 2.0, 2.0, 0.0])
    lists = np.pad(np.array([[1, 2], [1, 4]]), [(0, 0), (0, 8)])
    lists[1, 9] = 2  # 0 is no item, wherever it stands
    found = of_lists(lists, popularity)
    assert found["coverage@10"] == 3 / 4
    bits = [-math.log2(n / 8) for n in (4, 2, 4, 1, 2)]
    assert found["novelty@10"] == pytest.approx(np.mean(bits))
    assert of_lists(np.zeros((2, 10), int), popularity) == {"coverage@10": 0, "novelty@10": 0}
