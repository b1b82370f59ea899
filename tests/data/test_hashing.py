"""Hashes of raw ids: published values, uniform and independent, collisions counted by hand."""

import numpy as np
import polars as pl
import pytest

from gr_jax.data import hashing


def test_splitmix64_gives_the_published_sequence():
    state = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert hashing.splitmix64(state).tolist() == expected


def test_fnv1a_gives_the_published_values():
    values = hashing.fnv1a(pl.Series(["", "foobar", "a"])).tolist()
    assert values == [0xCBF29CE484222325, 0x85944171F73967E8, 0xAF63DC4C8601EC8C]


def test_fnv1a_hashes_bytes_and_not_characters():
    def one(text: str) -> int:
        value = 0xCBF29CE484222325
        for byte in text.encode():
            value = ((value ^ byte) * 0x100000001B3) % 2**64
        return value

    texts = ["é", "日本", "mixed é", "", "x" * 50, "日本"]
    assert hashing.fnv1a(pl.Series(texts)).tolist() == [one(text) for text in texts]


def test_a_number_is_its_own_key_and_other_digits_are_text():
    raw = pl.Series(["7", "007", "-1", str(2**63 - 1), str(2**63), "7.0", "x"])
    key = hashing.keys(raw).tolist()
    assert [key[0], key[2], key[3]] == [7, 2**64 - 1, 2**63 - 1]
    assert len(set(key)) == len(key)


def test_the_rows_of_an_id_never_change_and_do_not_depend_on_other_ids():
    raw = pl.Series(["1", "7", "x9", "日本"])
    rows = hashing.hashed_rows(hashing.keys(raw), hashes=3, rows=1000, seed=0)
    assert rows.tolist() == [[821, 536, 44], [194, 563, 813], [162, 444, 351], [636, 861, 810]]
    for i in range(len(raw)):
        alone = hashing.hashed_rows(hashing.keys(raw[i : i + 1]), hashes=3, rows=1000, seed=0)
        np.testing.assert_array_equal(alone[0], rows[i])


def chi_squared(counts: np.ndarray) -> float:
    """How many standard deviations the statistic of equal expectations lies from its mean."""
    expected, freedom = counts.mean(), counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("raw", [range(1, 60_001), range(0, 60_000_000, 1000)])
def test_rows_are_uniform_and_hashes_independent(raw):
    key, rows = np.array(raw, np.uint64), 64
    row = hashing.hashed_rows(key, hashes=3, rows=rows, seed=5) - 1
    other_seed = hashing.hashed_rows(key, hashes=1, rows=rows, seed=6) - 1
    assert row.min() == 0 and row.max() == rows - 1
    columns = [row[:, 0], row[:, 1], row[:, 2], other_seed[:, 0]]
    for i, a in enumerate(columns):
        assert abs(chi_squared(np.bincount(a, minlength=rows))) < 5
        for b in columns[:i]:  # all pairs of rows equally often: independent
            assert abs(chi_squared(np.bincount(a * rows + b, minlength=rows * rows))) < 5


def test_collisions_are_counted_as_by_hand():
    # Items 1 and 2 share one row, 3 and 4 both of theirs, item 5 hashes twice to a row of its own.
    found = hashing.collisions(np.array([[1, 2], [2, 3], [4, 5], [5, 4], [6, 6], [7, 8]]), 10)
    assert (found.one, found.all) == (4 / 6, 2 / 6)


@pytest.mark.parametrize(("hashes", "rows"), [(1, 20_000), (2, 200_000), (2, 400)])
def test_as_many_items_collide_as_expected(hashes, rows):
    found = hashing.collisions(
        hashing.hashed_rows(np.arange(20_000, dtype=np.uint64), hashes=hashes, rows=rows, seed=1),
        rows,
    )
    for share, expected in ((found.one, found.one_expected), (found.all, found.all_expected)):
        assert share == pytest.approx(
            expected, abs=5 * np.sqrt(expected * (1 - expected) / 20_000) + 1e-4
        )
    assert hashes > 1 or found.one == found.all
