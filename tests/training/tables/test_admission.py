"""Items on several or shared entries: the same training as with an entry each.

Entries are given and taken as by hand.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.config import Config, VocabularyConfig
from gr_jax.data.batches import epochs
from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.loader import read_batches
from gr_jax.models.embeddings import table_entries
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from gr_jax.models.vocabulary import item_vectors
from gr_jax.training import sharding, state
from gr_jax.training.optimizer import make_optimizer
from gr_jax.training.retrieval.step import make_train_step
from gr_jax.training.tables import admission
from tests.training.tables.test_update import DENSE_SGD, SPARSE_SGD
from tests.training.test_sharding import ITEMS, make_config, make_log


def small(config: Config, **fields: Any) -> Config:
    """The config with one block and this vocabulary."""
    model = dataclasses.replace(config.model, num_blocks=1)
    return dataclasses.replace(config, model=model, vocabulary=VocabularyConfig(**fields))


def first_of(config: Config) -> Any:
    log = make_log()
    log.catalogue.__dict__["items"] = pl.DataFrame(
        {"raw": [f"i{i}" for i in range(ITEMS)]}
    )  # there is no file
    return admission.initial(config, log)


def train(config: Config, first: Any, *, steps: int, init_table: Any = None, optimizer: Any = None):
    """Losses, final state and all that was given and taken."""
    mesh, optimizer = sharding.make_mesh(config.mesh), optimizer or make_optimizer(config.optimizer)
    ids = config.vocabulary.table_ids(ITEMS)
    graphdef, init = make_model(
        config.model, ModelSizes(num_items=ids, max_length=config.data.max_length)
    )

    def fresh(key):
        params = init(key)
        return (
            params
            if init_table is None
            else admission.with_item_table(params, jnp.asarray(init_table))
        )

    train_state, shardings = state.create(
        fresh,
        optimizer.init,
        jax.random.key(0),
        mesh=mesh,
        rules=config.mesh.rules,
        vocabulary=first,
    )
    step = make_train_step(graphdef, optimizer, config, num_items=ITEMS, item_log_q=None)
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))
    step = sharding.on_mesh(mesh, step)
    update = admission.make_update(config.vocabulary, first, shardings, mesh)
    rows = epochs.retrieval_batches(make_log(), config.data, batch_users=24, shards=8)
    losses, revisions = [], []
    for number, batch in enumerate(read_batches(rows, 0, steps)):
        batch = sharding.put(batch, sharding.batch_sharding(mesh))
        train_state, metrics = step(train_state, batch, jax.random.key(1))
        train_state, revision = update(train_state, number + 1)
        losses.append(float(metrics["loss"]))
        revisions += [revision] if revision else []
    return np.array(losses), train_state, revisions


def batch_of(item: Any, label: Any) -> Batch:
    """A batch that names these items."""
    zeros = jnp.zeros(np.shape(item), jnp.int32)
    return Batch(
        jnp.asarray(item, jnp.int32),
        zeros,
        zeros,
        zeros,
        zeros,
        label=jnp.asarray(label, jnp.int32),
    )


def item_table(train_state: state.TrainState) -> np.ndarray:
    return np.asarray(train_state.params["embeddings"]["item_table"])


def test_one_hash_without_collisions_trains_as_an_entry_for_each_item():
    config = small(make_config("full", 1, 1))
    order = 1 + np.random.default_rng(0).permutation(ITEMS).astype(np.int32)
    start = np.random.default_rng(1).normal(0, 0.02, (table_entries(ITEMS), 16)).astype(np.float32)
    losses, catalogue, _ = train(config, None, steps=4, init_table=start)
    rows = np.zeros((table_entries(ITEMS), 1), np.int32)
    rows[1 : ITEMS + 1, 0] = order
    permuted = start.copy()
    permuted[order] = start[1 : ITEMS + 1]
    config = small(config, kind="hashed", rows=ITEMS, hashes=1)
    same_losses, mapped, _ = train(config, {"rows": rows}, steps=4, init_table=permuted)
    np.testing.assert_allclose(same_losses, losses, rtol=1e-6)
    np.testing.assert_allclose(
        item_table(mapped)[order], item_table(catalogue)[1 : ITEMS + 1], atol=1e-5
    )
    catalogue_params = admission.catalogue_params(mapped.params, mapped.vocabulary)
    vectors = catalogue_params["embeddings"]["item_table"][1 : ITEMS + 1]
    np.testing.assert_array_equal(vectors, item_table(mapped)[order])


def test_a_rowwise_step_on_shared_entries_has_the_gradient_of_the_dense_one():
    config = small(make_config("group", 1, 1), kind="hashed", rows=60, hashes=2)
    first = first_of(config)
    start = np.random.default_rng(1).normal(0, 0.02, (table_entries(60), 16)).astype(np.float32)
    results = [
        train(config, first, steps=2, init_table=start, optimizer=o)
        for o in (DENSE_SGD, SPARSE_SGD)
    ]
    (losses, dense, _), (sparse_losses, sparse, _) = results
    np.testing.assert_allclose(sparse_losses, losses, rtol=1e-6)
    np.testing.assert_allclose(item_table(sparse), item_table(dense), rtol=1e-4, atol=2e-6)
    changed = (item_table(sparse) != start).any(-1)
    assert not changed[0] and changed[1:61].all() and not changed[61:].any()


ADMITTED = dict(
    kind="admitted", rows=40, shared_rows=30, hashes=2, admit_after=2, evict_after=3, update_every=2
)


@pytest.mark.parametrize(
    ("loss", "data", "model", "optimizer"),
    [("full", 4, 2, {}), ("group", 8, 1, {"table": "rowwise_adamw", "exchange": "all_to_all"})],
)
def test_one_and_eight_devices_give_the_same_entries_and_losses(loss, data, model, optimizer):
    runs = []
    for shape in ((1, 1), (data, model)):
        config = small(make_config(loss, *shape, **optimizer), **ADMITTED)
        runs.append(train(config, first_of(config), steps=12))
    (one, before, revisions), (many, after, _) = runs
    assert sum(r.admitted for r in revisions) > 40 and sum(r.evicted for r in revisions) > 0
    np.testing.assert_allclose(many, one, rtol=1e-4)
    for name in ("rows", "seen", "last"):
        np.testing.assert_array_equal(before.vocabulary[name][1:], after.vocabulary[name][1:])
    table = after.params["embeddings"]["item_table"]
    assert table.addressable_shards[0].data.size * 8 == table.size


# Entries given and taken

count_items = jax.jit(admission.count_items)


def by_hand(rows, seen, last, shared, config: VocabularyConfig, step: int) -> tuple[dict, dict]:
    """The rules, an item at a time.

    Returns the vocabulary after it, and {entry: item that gets it, 0 = it waits}.
    """
    rows, seen, changed = {i: tuple(r) for i, r in enumerate(rows.tolist())}, list(seen), {}
    own = lambda i: rows[i][0] > config.shared_rows
    for i in range(1, len(seen)):
        if config.evict_after and seen[i] and last[i] <= step - config.evict_after:
            seen[i] = 0
            if own(i):
                changed[rows[i][0]] = 0
                rows[i] = tuple(shared[i])
    taken = {rows[i][0] for i in rows if own(i)}
    free = [
        r
        for r in range(config.shared_rows + 1, config.shared_rows + config.rows + 1)
        if r not in taken
    ]
    for i in sorted(
        (i for i in range(1, len(seen)) if seen[i] >= config.admit_after and not own(i)),
        key=lambda i: (-seen[i], i),
    ):
        if free:
            row = free.pop(0)
            rows[i], changed[row] = (row,) + (0,) * (config.hashes - 1), i
    return {"rows": np.array([rows[i] for i in range(len(seen))]), "seen": np.array(seen)}, changed


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(0, 5),
    st.integers(1, 3),
    st.integers(1, 6),
)
def test_entries_are_given_and_taken_as_by_hand(seed, admit_after, evict_after, hashes, own_rows):
    rng, items = np.random.default_rng(seed), 15
    config = VocabularyConfig(
        kind="admitted",
        rows=own_rows,
        shared_rows=4,
        hashes=hashes,
        admit_after=admit_after,
        evict_after=evict_after,
        update_every=2,
    )
    shared = rng.integers(1, 5, (items + 1, hashes)).astype(np.int32)
    shared[0] = 0
    now = {
        "rows": shared,
        "seen": np.zeros(items + 1, np.int32),
        "last": np.zeros(items + 1, np.int32),
    }
    counts, last = np.zeros(items + 1, np.int64), np.zeros(items + 1, np.int64)
    for step in range(0, 24, 2):
        for k in (step, step + 1):
            item, label = rng.integers(0, 2 + step * items // 24, (2, 2, 2))
            now = count_items(now, batch_of(item, label), jnp.int32(k))
            named = np.setdiff1d([item, label], 0)
            counts[named] += 1
            last[named] = k + 1
        assert now is not None
        found = admission.revise(jax.tree.map(np.asarray, now), shared, config, step=step + 2)
        expected, changed = by_hand(now["rows"], counts, last, shared, config, step + 2)
        np.testing.assert_array_equal(found.vocabulary["rows"], expected["rows"])
        np.testing.assert_array_equal(found.vocabulary["seen"], expected["seen"])
        source = {
            row: shared[item].tolist() if item else [0] * hashes for row, item in changed.items()
        }
        assert dict(zip(found.entry.tolist(), found.source.tolist(), strict=True)) == source
        assert len(set(found.entry.tolist())) == len(found.entry)
        now, counts = found.vocabulary, expected["seen"].astype(np.int64)


@pytest.mark.parametrize("table", ["dense", "rowwise_adamw"])
def test_an_admission_changes_no_vector_and_entries_that_change_hands_have_no_moments(table):
    config = VocabularyConfig(
        kind="admitted", rows=4, shared_rows=3, hashes=2, admit_after=2, evict_after=5
    )
    shared = np.array([[0, 0], [1, 2], [2, 2], [3, 1], [1, 1]], np.int32)
    rows = shared.copy()
    # Item 4 owns entry 7 and has not been seen for long; items 1 and 3 have earned an entry.
    rows[4] = 7, 0
    before = {"rows": rows, "seen": np.array([9, 3, 1, 2, 5]), "last": np.array([9, 9, 9, 9, 2])}
    revision = admission.revise(before, shared, config, step=10)
    assert (revision.admitted, revision.evicted, revision.waiting) == (2, 1, 0)
    assert revision.vocabulary["rows"].tolist() == [[0, 0], [4, 0], [2, 2], [5, 0], [1, 1]]
    rng = np.random.default_rng(0)
    optimizer = make_optimizer(make_config("group", 1, 1, table=table).optimizer)
    params = {
        "embeddings": {"item_table": jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)},
        "x": jnp.ones(8),
    }
    ones = jax.tree.map(jnp.ones_like, optimizer.init(params))
    now = state.TrainState(jnp.int32(10), params, ones, before)
    after = admission.moved(
        now, revision.vocabulary, jnp.asarray(revision.entry), jnp.asarray(revision.source)
    )
    vectors = [
        item_vectors(s.params["embeddings"]["item_table"], jnp.asarray(s.vocabulary["rows"]))
        for s in (now, after)
    ]
    np.testing.assert_allclose(vectors[1][1:4], vectors[0][1:4], rtol=1e-6)
    assert (item_table(after)[7] == 0).all() and (
        item_table(after)[:4] == item_table(now)[:4]
    ).all()
    moments = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(after.opt_state):
        if "item_table" in sharding.path_name(path):
            moments += 1
            assert (leaf[np.array([4, 5, 7])] == 0).all() and (
                leaf[np.array([0, 1, 2, 3, 6])] == 1
            ).all()
        else:
            assert (leaf == 1).all()
    assert moments == 2


def test_entries_change_hands_without_copies_of_a_sharded_table():
    config = small(make_config("group", 4, 2, table="rowwise_adamw"), **ADMITTED | {"rows": 60_000})
    mesh = sharding.make_mesh(config.mesh)
    _, init = make_model(
        config.model, ModelSizes(num_items=config.vocabulary.table_ids(ITEMS), max_length=16)
    )
    optimizer = make_optimizer(config.optimizer)
    shapes = jax.eval_shape(
        lambda: state.TrainState(jnp.int32(0), p := init(jax.random.key(0)), optimizer.init(p))
    )
    shapes = dataclasses.replace(shapes, vocabulary=admission.shapes(config.vocabulary, ITEMS))
    placements = sharding.by_path(shapes, config.mesh.rules, mesh)
    move = jax.jit(admission.moved, donate_argnums=0, out_shardings=placements)
    place = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    row, source = jax.ShapeDtypeStruct((128,), jnp.int32), jax.ShapeDtypeStruct((128, 2), jnp.int32)
    given = jax.tree.map(place, shapes, placements), shapes.vocabulary, row, source
    compiled = sharding.on_mesh(mesh, move.lower)(*given).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * 60_000 * 16 * 4 / 8


def test_an_item_is_counted_once_a_step_as_token_or_label():
    batch = batch_of([[3, 3, 0]], [[3, 5, 0]])
    first = {"rows": jnp.zeros((7, 1)), "seen": jnp.arange(7), "last": jnp.zeros(7, jnp.int32)}
    after = admission.count_items(first, batch, jnp.int32(41))
    assert after is not None
    assert after["seen"].tolist()[1:] == [1, 2, 4, 4, 6, 6]
    assert after["last"].tolist()[1:] == [0, 0, 42, 0, 42, 0]
