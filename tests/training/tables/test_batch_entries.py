import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.data.batches.batch import Batch, Impressions
from gr_jax.training.tables.batch_entries import touched

ITEMS, VALUES = 50, 20


def make_batch(rows=4, length=6) -> Batch:
    rng = np.random.default_rng(0)
    zeros = jnp.zeros((rows, length), jnp.int32)
    ids = lambda top, *rest: jnp.asarray(rng.integers(0, top, (rows, length, *rest)), jnp.int32)
    return Batch(
        ids(ITEMS),
        zeros,
        zeros,
        zeros,
        zeros,
        label=ids(ITEMS),
        item_features=ids(VALUES, 2),
        user_feature=ids(VALUES),
    )


def restored(small, table: str, name: str, numbers: np.ndarray) -> np.ndarray:
    """The ids behind the numbers of a field."""
    rows = np.asarray(small.rows[table])
    parts = numbers.reshape(len(rows), -1)
    return np.take_along_axis(rows, parts, axis=1).reshape(numbers.shape)


@pytest.mark.parametrize("parts", [1, 2])
def test_every_id_is_the_number_of_its_row_and_padding_stays_0(parts):
    batch = make_batch()
    negatives = jnp.asarray(np.random.default_rng(1).integers(1, ITEMS, (4, 2, 3)), jnp.int32)
    small = touched(batch, negatives, {"item_table": 128, "feature_table": 128}, parts=parts)
    for table, names in {
        "item_table": ("item", "label"),
        "feature_table": ("item_features", "user_feature"),
    }.items():
        rows = np.asarray(small.rows[table])
        assert (rows[:, 0] == 0).all() and (np.diff(rows) > 0).all()
        for name in names:
            numbers = np.asarray(getattr(small.batch, name))
            np.testing.assert_array_equal(
                restored(small, table, name, numbers), getattr(batch, name)
            )
            assert ((numbers == 0) == (np.asarray(getattr(batch, name)) == 0)).all()
    np.testing.assert_array_equal(
        restored(small, "item_table", "", np.asarray(small.negatives)), negatives
    )


def test_rows_are_as_many_as_the_ids_or_the_table_whichever_is_less():
    batch = make_batch()
    assert touched(batch, None, {"item_table": 128}, parts=1).rows["item_table"].shape == (
        1,
        49,
    )  # and padding
    assert touched(batch, None, {"item_table": ITEMS}, parts=2).rows["item_table"].shape == (2, 25)
    assert touched(batch, None, {"item_table": 30}, parts=1).rows["item_table"].shape == (1, 30)


def test_features_of_items_come_with_the_items():
    rng = np.random.default_rng(0)
    item_features = rng.integers(0, VALUES, (128, 2)).astype(np.int32)
    item, history = (
        rng.integers(0, ITEMS, 4).astype(np.int32),
        rng.integers(0, ITEMS, (4, 3)).astype(np.int32),
    )
    zeros, y = jnp.zeros((4, 3), jnp.int32), jnp.zeros((4, 1))
    batch = Impressions(
        *map(jnp.asarray, (item,)),
        None,
        jnp.asarray(history),
        zeros,
        zeros,
        y,
        y,
        jnp.asarray(item_features),
    )
    small = touched(batch, None, {"item_table": 128, "feature_table": 128}, parts=1)
    rows, values = (
        np.asarray(small.rows["item_table"])[0],
        np.asarray(small.rows["feature_table"])[0],
    )
    real = rows < 128
    np.testing.assert_array_equal(
        values[np.asarray(small.batch.catalogue_features)[0, real]], item_features[rows[real]]
    )
    np.testing.assert_array_equal(rows[np.asarray(small.batch.item)], item)
    assert dataclasses.replace(small.batch, catalogue_features=None).user_features is None
