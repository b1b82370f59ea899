"""Filters against brute force and against an example worked by hand."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.data.log import filters


def k_core_slowly(pairs: list[tuple[int, int]], k: int) -> list[tuple[int, int]]:
    """Drops one infrequent user or item at a time."""
    while True:
        users, items = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
        bad_users = [u for u, n in users.items() if n < k]
        bad_items = [i for i, n in items.items() if n < k]
        if bad_users:
            pairs = [p for p in pairs if p[0] != bad_users[0]]
        elif bad_items:
            pairs = [p for p in pairs if p[1] != bad_items[0]]
        else:
            return pairs


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60), st.integers(1, 4))
def test_k_core_equals_brute_force(pairs, k):
    user = np.array([u for u, _ in pairs], np.int32)
    item = np.array([i for _, i in pairs], np.int32)
    keep = filters.k_core(user, item, k=k)
    assert [p for p, kept in zip(pairs, keep, strict=True) if kept] == k_core_slowly(pairs, k)


def test_k_core_repeats_until_nothing_changes():
    # Item 2 goes, so user 1 goes, so item 1 goes, so user 0 goes.
    user = np.array([0, 0, 1, 1], np.int32)
    item = np.array([0, 1, 1, 2], np.int32)
    assert not filters.k_core(user, item, k=2).any()


def test_one_pass_counts_once_and_then_drops_short_users():
    # k = 2. Counts: users 0: 3, 1: 2, 2: 1, 3: 2; items 0: 3, 1: 2, 2: 2, 3: 1.
    user = np.array([0, 0, 0, 1, 1, 2, 3, 3], np.int32)
    item = np.array([0, 1, 3, 1, 2, 0, 0, 2], np.int32)
    # Item 3 and user 2 are infrequent: their events go, at the same time. User 0 keeps items 0 and
    # 1. Item 0 is then left twice, by users 0 and 3. Nobody is left with one event.
    assert filters.one_pass(user, item, k=2).tolist() == [
        True,
        True,
        False,
        True,
        True,
        False,
        True,
        True,
    ]
    # One event of user 1 fewer: user 1 has one event and goes; item 1 stays with user 0 alone.
    user, item = np.delete(user, 4), np.delete(item, 4)
    # Item 2 now occurs once: user 3 keeps item 0 only, and goes in the last step.
    assert filters.one_pass(user, item, k=2).tolist() == [
        True,
        True,
        False,
        False,
        False,
        False,
        False,
    ]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60), st.integers(1, 4))
def test_one_pass_equals_its_definition(pairs, k):
    users, items = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
    kept = [p for p in pairs if users[p[0]] >= k and items[p[1]] >= k]
    left = Counter(u for u, _ in kept)
    keep = filters.one_pass(
        np.array([u for u, _ in pairs], np.int32), np.array([i for _, i in pairs], np.int32), k=k
    )
    assert [p for p, yes in zip(pairs, keep, strict=True) if yes] == [
        p for p in kept if left[p[0]] >= k
    ]
