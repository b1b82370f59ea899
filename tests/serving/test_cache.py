import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.data.batches.batch import Batch
from gr_jax.serving import rows
from gr_jax.serving.cache import HistoryCache
from tests.models.ranking_batch import ITEMS
from tests.serving.test_m_falcon import SPLITS, N, ranking_scorer

USERS, FIRST = 3, st.sampled_from([0, 2])  # users, and the first event that is visible


def scorer():
    return ranking_scorer(SPLITS[1])


def row_of(item, time, position) -> Batch:
    fields = (item, time, time, position, np.ones_like(item))
    return Batch(*(np.asarray(x, np.int32)[None] for x in fields))


def log_of(user: int, first: int = 0, end: int = N) -> Batch:
    """Part of all that a user will ever do."""
    rng = np.random.default_rng(user)
    item, time = rng.integers(1, ITEMS, N), np.cumsum(rng.integers(1, 999, N))
    return row_of(item[first:end], time[first:end], np.arange(max(0, end - first)))


def scores(entries, time=10**5):
    same = lambda value: np.full(3, value)
    candidates = [
        row_of([3, 8, 5], same(time), same(rows.length(entry.tokens))) for entry in entries
    ]
    return scorer().score(entries, candidates)


@settings(max_examples=8, deadline=None)
@given(
    calls=st.lists(
        st.lists(st.tuples(st.integers(0, USERS - 1), FIRST, st.integers(0, N)), max_size=3),
        max_size=6,
    ),
    entries_that_fit=st.integers(0, 3),
)
def test_whatever_was_asked_before_an_answer_is_that_of_a_new_forward(calls, entries_that_fit):
    one = scorer().histories.compute([log_of(0)])[0].nbytes
    cache = HistoryCache(scorer().histories, entries_that_fit * one)
    for call in calls:
        histories = [log_of(user, first, n) for user, first, n in call]
        found = cache.entries([user for user, _, _ in call], histories)
        now = cache.counters
        assert now.bytes <= cache.max_bytes and now.bytes == sum(
            e.nbytes for e in cache._entries.values()
        )
        assert now.entries == len(cache._entries)
        for a, b in zip(scores(found), scores(scorer().histories.compute(histories)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert cache.counters.hits + cache.counters.misses == sum(map(len, calls))


def test_hits_appends_misses_and_evictions_are_counted_and_the_least_recently_used_goes():
    size = scorer().histories.compute([log_of(0, 0, 10)])[0].nbytes
    cache = HistoryCache(scorer().histories, 2 * size + size // 2)
    first = [log_of(user, 0, 10) for user in range(3)]
    cache.entries(["a", "b"], first[:2])
    cache.entries(["a"], [log_of(0, 0, 12)])
    counters = cache.counters
    assert (counters.hits, counters.misses, counters.evictions, counters.appended) == (1, 2, 0, 2)
    cache.entries(["c"], first[2:])
    assert list(cache._entries) == ["a", "c"] and cache.counters.evictions == 1
    cache.entries(
        ["a"], [log_of(0, 2, N)]
    )  # as long as before, but the oldest events are not visible any more
    assert cache.counters.misses == 4
    cache.clear()
    assert (cache.counters.entries, cache.counters.bytes, cache.counters.misses) == (0, 0, 4)


def test_a_user_who_comes_twice_in_a_call_is_served_twice():
    cache = HistoryCache(scorer().histories, 1 << 30)
    cache.entries(["a"], [log_of(0, 0, 4)])
    found = cache.entries(["a", "a", "a"], [log_of(0, 0, n) for n in (6, 8, 5)])
    expected = scorer().histories.compute([log_of(0, 0, n) for n in (6, 8, 5)])
    for a, b in zip(scores(found), scores(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_only_what_is_new_is_computed(monkeypatch):
    cache, seen = HistoryCache(scorer().histories, 1 << 30), collections.Counter()
    for name in ("_prefill", "_delta"):
        program = getattr(scorer().histories, name)

        def spy(params, batch, *rest, name=name, program=program):
            seen[name] += int(batch.segment.sum())
            return program(params, batch, *rest)

        monkeypatch.setattr(scorer().histories, name, spy)
    for n in (5, 5, 6, 9):
        cache.entries(["a"], [log_of(0, 0, n)])
    assert seen == {"_prefill": 5, "_delta": 4}


def test_a_negative_budget_is_a_mistake():
    with pytest.raises(ValueError, match="max_bytes=-1"):
        HistoryCache(scorer().histories, -1)
