"""Raw ids as codes: numbers in numeric order, text as text, no gaps."""

import numpy as np
import polars as pl
import pytest

from gr_jax.data import ids


@pytest.mark.parametrize(
    ("raw", "order"),
    [
        (["10", "9", "10"], ["9", "10"]),
        ([10, 9, -1], ["-1", "9", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["7", "007"], ["007", "7"]),
        ([], []),
    ],
)
def test_codes_follow_the_order_of_the_ids(raw, order):
    series = pl.Series(raw, dtype=None if raw else pl.String)
    codes, distinct = ids.encode(series)
    assert distinct.to_list() == order
    assert [order[code] for code in codes] == [str(value) for value in raw]


def test_codes_that_are_left_are_renumbered_without_gaps():
    code, kept = ids.compact(np.array([5, 2, 5, 0]), 7)
    assert code.tolist() == [2, 1, 2, 0] and kept.tolist() == [0, 2, 5] and code.dtype == np.int32
