import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr_jax.data.batches import packing

lengths_of_users = st.lists(st.integers(1, 20), min_size=1, max_size=60).map(np.array)


def tokens_of(packed: packing.Packing, lengths: np.ndarray, row_length: int) -> np.ndarray:
    """How many sequences claim each token of each row."""
    claims = np.zeros((packed.num_rows, row_length), int)
    for row, column, length in zip(packed.row, packed.column, lengths, strict=True):
        claims[row, column : column + length] += 1
        assert column + length <= row_length
    return claims


@given(lengths_of_users, st.integers(20, 40))
def test_sequences_do_not_overlap_and_stay_inside_their_row(lengths, row_length):
    packed = packing.pack(lengths, row_length)
    claims = tokens_of(packed, lengths, row_length)
    assert claims.max() == 1
    assert claims.sum() == lengths.sum()


@given(lengths_of_users)
def test_no_two_rows_could_be_merged(lengths):
    packed = packing.pack(lengths, 20)
    used = np.bincount(packed.row, weights=lengths, minlength=packed.num_rows)
    assert used.min() > 0
    if packed.num_rows > 1:
        assert np.sort(used)[:2].sum() > 20


def test_rows_of_four_mean_lengths_are_at_least_95_percent_full():
    rng = np.random.default_rng(0)
    for lengths in (
        rng.integers(1, 129, 5000),
        np.clip(rng.lognormal(4, 1, 5000).astype(int), 1, 200),
    ):
        row_length = max(int(lengths.max()), int(4 * lengths.mean()))
        packed = packing.pack(lengths, row_length)
        assert lengths.sum() / (packed.num_rows * row_length) >= 0.95


def test_a_sequence_longer_than_a_row_is_an_error_that_names_both():
    with pytest.raises(ValueError, match="21 tokens does not fit in a row of 20"):
        packing.pack(np.array([3, 21]), 20)


@given(lengths_of_users, st.integers(0, 5))
def test_a_shuffled_packing_is_a_packing_with_as_many_rows(lengths, seed):
    packed = packing.pack(lengths, 20)
    shuffled = packing.shuffle(packed, lengths, np.random.default_rng(seed))
    assert shuffled.num_rows == packed.num_rows
    claims = tokens_of(shuffled, lengths, 20)
    assert claims.max() == 1
    assert claims.sum() == lengths.sum()


def test_shuffling_gives_users_other_neighbours():
    lengths = np.full(200, 5)
    packed = packing.pack(lengths, 20)
    neighbours = [
        frozenset(np.flatnonzero(shuffled.row == shuffled.row[0]).tolist())
        for shuffled in (
            packing.shuffle(packed, lengths, np.random.default_rng(seed)) for seed in range(5)
        )
    ]
    assert len(set(neighbours)) == 5


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 5)), min_size=1, max_size=20))
def test_token_index_concatenates_ranges(ranges):
    start, length = (np.array(column) for column in zip(*ranges, strict=True))
    expected = [at for first, n in ranges for at in range(first, first + n)]
    assert packing.token_index(start, length).tolist() == expected


def shards_of(packed: packing.Packing, batch_rows: int, shards: int) -> np.ndarray:
    """Which batch and shard each sequence is in, as one number."""
    return packed.row // (batch_rows // shards)


@given(lengths_of_users, st.integers(1, 4), st.integers(1, 9))
def test_balancing_keeps_the_batches_and_their_rows(lengths, shards, batch_rows):
    packed = packing.pack(lengths, 20)
    balanced, number = packing.balance(packed, lengths**2, batch_rows, shards)
    rows = packing.padded(batch_rows, shards)
    batch, place = np.divmod(balanced.row, rows)
    assert (batch == packed.row // batch_rows).all()
    assert (balanced.column == packed.column).all()
    assert (np.sort(number, axis=1) == np.arange(rows)).all(), "a row is lost or there twice"
    assert (number[batch, place] == packed.row % batch_rows).all()


def test_balanced_shards_of_a_skewed_log_cost_nearly_the_same():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3.5, 1.2, 4000).astype(int), 1, 256)
    packed = packing.shuffle(packing.pack(lengths, 256), lengths, rng)
    pairs, batch_rows, shards = lengths * (lengths + 1) // 2, 64, 8
    before, after = (
        packing.imbalance(order, pairs, batch_rows, shards, row_cost=0.0)
        for order in (packed, packing.balance(packed, pairs, batch_rows, shards)[0])
    )
    assert before > 1.2
    assert after < 1.03  # the last batch has fewer rows than shards


def test_imbalance_is_the_costliest_shard_over_the_mean():
    packed = packing.pack(np.array([6, 4, 2]), 6)  # rows of 6, and of 4 and 2
    cost = np.array([30.0, 7.0, 3.0])
    assert packing.imbalance(packed, cost, 2, 2, row_cost=0.0) == 30 / 20
    assert packing.imbalance(packed, cost, 2, 2, row_cost=10.0) == 40 / 30
    assert packing.imbalance(packed, cost, 2, 1, row_cost=0.0) == 1


def test_the_last_batch_is_balanced_with_its_empty_rows():
    packed = packing.pack(np.full(5, 20), 20)
    balanced, _ = packing.balance(packed, np.full(5, 1), 4, 2)
    first, last = shards_of(balanced, 4, 2)[:4], balanced.row[4]
    assert np.bincount(first).tolist() == [2, 2]
    assert 4 <= last < 8
