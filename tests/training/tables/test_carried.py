import numpy as np
import polars as pl
import pytest
from scipy import sparse

from gr_jax.data.batches.splits import TrainingLog
from gr_jax.data.dataset import Catalogue
from gr_jax.training.tables.carried import (
    Likeness,
    Match,
    carry,
    match_items,
    match_values,
    same_entries,
)


@pytest.fixture
def catalogue(tmp_path):
    """`catalogue(raw, values)`: items by letter, and the items that have each feature value."""

    def write(raw: str, values: dict[str, str] | None = None) -> Catalogue:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        pl.DataFrame({"raw": list(raw)}).write_parquet(folder / "items.parquet")
        features = np.zeros((len(raw) + 1, 2), np.int32)
        for item, letter in enumerate(raw, start=1):
            having = [i for i, items in enumerate((values or {}).values(), 1) if letter in items]
            features[item, : len(having)] = having
        if values:
            names = [name.split("=") for name in values]
            table = pl.DataFrame(names, schema=["feature", "value"], orient="row")
            table.write_parquet(folder / "features.parquet")
        return Catalogue(folder, {"items": len(raw)}, features if values else None)

    return write


NOTHING = TrainingLog(np.array([0, 0]), np.zeros(0, np.int32), 3)
TABLE = np.array([[0, 0], [1, 0], [0, 1], [4, 8]], np.float32)


def test_known_entries_follow_their_raw_ids_and_others_are_the_mean_of_all(catalogue):
    then, now = catalogue("abc"), catalogue("xcba")
    match = match_items(then, now, match_values(then, now), NOTHING)
    found = carry(TABLE, match, 7)
    np.testing.assert_allclose(found[:5], [[0, 0], [5 / 3, 3], [4, 8], [0, 1], [1, 0]])
    assert not found[5:].any() and found.shape == (7, 2)
    bias = carry(TABLE[:, 0], match, 7)
    np.testing.assert_allclose(bias, found[:, 0])
    assert carry(TABLE.astype(np.float16), match, 7).dtype == np.float16
    np.testing.assert_array_equal(carry(TABLE, same_entries(3), 4), TABLE)


def test_what_decides_is_the_log_then_the_features(catalogue):
    kinds = {"genre=old": "ab", "genre=new": "c", "year=1": ""}
    then = catalogue("abc", kinds)
    now = catalogue("abcxyz", {"genre=new": "cy", "genre=old": "abx"})
    log = TrainingLog(np.array([0, 3, 5]), np.array([1, 4, 2, 1, 2], np.int32), 6)
    match = match_items(then, now, match_values(then, now), log)
    x, y, z = carry(TABLE, match, 7)[4:]
    mean = TABLE[1:].mean(0)
    of_any = (2 * TABLE[1] + 2 * TABLE[2]) / 4  # x beside a and b, a beside b, b beside a
    np.testing.assert_allclose(x, mean + 2 * (TABLE[1:3].mean(0) - of_any), rtol=1e-6)
    np.testing.assert_allclose(y, TABLE[3], rtol=1e-6, err_msg="c, which alone has its genre")
    np.testing.assert_allclose(z, mean, rtol=1e-6)


def test_values_follow_their_names_and_a_new_one_is_the_mean_of_its_feature(catalogue):
    then = catalogue("a", {"genre=old": "a", "year=1": "", "genre=sad": ""})
    now = catalogue("a", {"genre=any": "a", "genre=sad": "", "year=1": "", "tag=1": ""})
    match = match_values(then, now)
    np.testing.assert_array_equal(match.source, [0, -1, 3, 2, -1])
    found = carry(TABLE, match, 5)
    np.testing.assert_allclose(found, [[0, 0], [2.5, 4], [4, 8], [0, 1], TABLE[1:].mean(0)])


def test_likeness_in_factors_is_that_of_their_product():
    rng = np.random.default_rng(0)
    a, b = sparse.csr_array(rng.random((5, 3))), sparse.csr_array(rng.random((3, 4)))
    source = np.array([0, -1, 2, -1, 1], np.int32)
    ours = carry(TABLE, Match(source, 3, (Likeness((a, b)),)), 5)
    theirs = carry(TABLE, Match(source, 3, (Likeness((sparse.csr_array(a @ b),)),)), 5)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
