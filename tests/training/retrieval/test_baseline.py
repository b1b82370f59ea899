"""The popularity baseline agrees with the ranking written out user by user."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.training.retrieval.baseline import popularity_ranks, training_counts


def ranks_of(histories, num_items, held_out, visible=99):
    """Ranks of one target of every user with at least 3 events.

    The `visible` events before it are left out.
    """
    offsets, item = flat(histories)
    user = np.flatnonzero(np.diff(offsets) >= 3)
    target = offsets[user + 1] - held_out
    count = training_counts(offsets, item, num_items)
    return popularity_ranks(count, item, np.maximum(offsets[user], target - visible), target)


def slow_ranks(histories, num_items, held_out, visible):
    count = np.zeros(num_items + 1, int)
    for history in histories:
        for item in history[:-2]:
            count[item] += 1
    ranks = []
    for history in histories:
        if len(history) >= 3:
            *seen, target = history[: len(history) - held_out + 1]
            seen = seen[max(0, len(seen) - visible) :]
            ranked = [x for x in range(1, num_items + 1) if x not in seen]
            rank = sum(count[x] >= count[target] for x in ranked)
            ranks.append(rank if target in ranked else np.inf)
    return ranks


def flat(histories):
    offsets = np.cumsum([0] + [len(history) for history in histories])
    return offsets.astype(np.int64), np.array(
        [x for history in histories for x in history], np.int32
    )


@settings(deadline=None)
@given(
    num_items=st.integers(1, 12),
    held_out=st.sampled_from([1, 2]),
    visible=st.sampled_from([0, 2, 99]),
    data=st.data(),
)
def test_ranks_agree_with_ranking_the_catalogue_for_each_user(num_items, held_out, visible, data):
    histories = data.draw(
        st.lists(st.lists(st.integers(1, num_items), max_size=8), min_size=1, max_size=8)
    )
    ranks = ranks_of(histories, num_items, held_out, visible)
    assert ranks.tolist() == slow_ranks(histories, num_items, held_out, visible)


def test_held_out_events_are_not_counted():
    """Item 9 is in every log, but only at the end: it is as unpopular as the items nobody had."""
    histories = [[1, 2, 3, 9], [1, 2, 4, 9], [1, 2, 5, 9]]
    ranks = ranks_of(histories, 10, 1)
    assert ranks.tolist() == [10 - 3] * 3


@pytest.mark.parametrize("held_out, rank", [(2, 1), (1, 2)])
def test_the_most_popular_item_left_ranks_first(held_out, rank):
    """Of the last log, 3 is the validation target, tied with nothing.

    4 is the test target, tied with 5.
    """
    histories = [[3, 3, 6, 6], [4, 5, 6, 6], [1, 2, 3, 4]]
    assert ranks_of(histories, 6, held_out)[-1] == rank
