import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.data.batches.batch import Batch, Impressions
from gr_jax.training.retrieval.step import RetrievalInputs
from gr_jax.training.tables.batch_entries import renumber

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


def restored(ids: np.ndarray, places: np.ndarray, parts: int | None) -> np.ndarray:
    """The ids behind the places of a field."""
    lead = () if parts is None else (parts,)
    return np.take_along_axis(ids, places.reshape(*lead, -1), axis=-1).reshape(places.shape)


@pytest.mark.parametrize("parts", [None, 1, 2])
def test_every_id_is_the_place_of_its_entry_and_padding_stays_0(parts):
    negatives = jnp.asarray(np.random.default_rng(1).integers(1, ITEMS, (4, 2, 3)), jnp.int32)
    batch = RetrievalInputs(**vars(make_batch()), negatives=negatives)
    ids, numbered = renumber(batch, {"item_table": 128, "feature_table": 128}, parts=parts)
    for table, names in {
        "item_table": ("item", "label", "negatives"),
        "feature_table": ("item_features", "user_feature"),
    }.items():
        distinct = np.asarray(ids[table])
        assert distinct.shape[:-1] == (() if parts is None else (parts,))
        assert (distinct[..., 0] == 0).all() and (np.diff(distinct) > 0).all()
        for name in names:
            places, before = np.asarray(getattr(numbered, name)), np.asarray(getattr(batch, name))
            np.testing.assert_array_equal(restored(distinct, places, parts), before)
            assert ((places == 0) == (before == 0)).all()


def test_ids_are_as_many_as_are_named_or_as_the_table_has_whichever_is_less():
    shape = lambda size, parts: (
        renumber(make_batch(), {"item_table": size}, parts=parts)[0]["item_table"].shape
    )
    assert shape(128, None) == (49,)  # and padding
    assert shape(ITEMS, 2) == (2, 25)
    assert shape(30, None) == (30,)


@pytest.mark.parametrize("parts", [None, 2])
def test_what_is_known_of_each_item_is_kept_of_the_items_of_the_batch(parts):
    log_q = jnp.arange(128, dtype=jnp.float32)
    batch = RetrievalInputs(**vars(make_batch()), item_log_q=log_q)
    ids, numbered = renumber(batch, {"item_table": 128}, parts=parts)
    distinct = np.asarray(ids["item_table"])
    real = distinct < 128
    np.testing.assert_array_equal(np.asarray(numbered.item_log_q)[real], distinct[real])


def test_features_of_items_come_with_the_items():
    rng = np.random.default_rng(0)
    side = rng.integers(0, VALUES, (128, 2)).astype(np.int32)
    item = rng.integers(0, ITEMS, 4).astype(np.int32)
    history = rng.integers(0, ITEMS, (4, 3)).astype(np.int32)
    zeros, y = jnp.zeros((4, 3), jnp.int32), jnp.zeros((4, 1))
    history, side_of = jnp.asarray(history), jnp.asarray(side)
    batch = Impressions(jnp.asarray(item), None, history, zeros, zeros, y, y, side_of)
    ids, numbered = renumber(batch, {"item_table": 128, "feature_table": 128}, parts=None)
    items, values = np.asarray(ids["item_table"]), np.asarray(ids["feature_table"])
    real = items < 128
    np.testing.assert_array_equal(
        values[np.asarray(numbered.catalogue_features)[real]], side[items[real]]
    )
    np.testing.assert_array_equal(items[np.asarray(numbered.item)], item)
    assert numbered.user_features is None
