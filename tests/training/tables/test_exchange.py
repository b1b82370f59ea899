"""Entries that travel over a mesh, against one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gr_jax.config import MeshConfig
from gr_jax.training import sharding
from gr_jax.training.tables.exchange import deliver, fetch

ROWS, D, U = 64, 3, 12
MESHES = [(2, 1), (1, 4), (2, 2), (4, 2), (8, 1)]


def make_rows(parts: int, top: int) -> np.ndarray:
    """Distinct ascending entries below `top` for each part, 0 first.

    Some numbers beyond the table are last.
    """
    rng = np.random.default_rng(parts)
    drawn = [
        np.sort(rng.choice(np.arange(1, top), min(top - 1, U - 3), replace=False))
        for _ in range(parts)
    ]
    return np.stack(
        [np.concatenate([[0], rows, ROWS + np.arange(U - 1 - len(rows))]) for rows in drawn]
    ).astype(np.int32)


def add_to(table, state, rows, gradients, first):
    """An update that records its arguments: sums into the table, and counts of calls."""
    del first
    return table.at[rows].add(gradients, mode="drop"), {
        "count": state["count"].at[rows].add(1, mode="drop")
    }


# With entries below 8 all belong to the first device of eight: no message is large enough for them.
@pytest.mark.parametrize("top", [ROWS, 8])
@pytest.mark.parametrize("how", ["gather", "all_to_all"])
@pytest.mark.parametrize(("data", "model"), MESHES)
def test_all_entries_arrive_and_each_is_updated_once_with_its_whole_gradient(data, model, how, top):
    mesh = sharding.make_mesh(MeshConfig(data=data, model=model))
    over_rows = NamedSharding(mesh, PartitionSpec(("data", "model")))
    over_data = NamedSharding(mesh, PartitionSpec("data"))
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ROWS, D)).astype(np.float32)
    rows, gradients = make_rows(data, top), rng.normal(size=(data, U, D)).astype(np.float32)

    @jax.jit
    def run(table, state, rows, gradients):
        return fetch(table, rows, exchange=how), deliver(
            add_to, table, state, rows, gradients, exchange=how
        )

    on = (
        jax.device_put(table, over_rows),
        {"count": jax.device_put(np.zeros(ROWS, np.int32), over_rows)},
        jax.device_put(rows, over_data),
        jax.device_put(gradients, over_data),
    )
    fetched, (updated, state) = sharding.on_mesh(mesh, run)(*on)
    padded = np.concatenate([table, np.zeros((U, D), np.float32)])
    np.testing.assert_array_equal(fetched, padded[rows])
    expected = padded.copy()
    np.add.at(expected, rows, gradients)
    np.testing.assert_allclose(updated, expected[:ROWS], rtol=1e-5, atol=1e-6)
    asked = np.isin(np.arange(ROWS), rows)
    np.testing.assert_array_equal(state["count"], asked)


def test_one_device_takes_and_updates_without_a_mesh():
    table = jnp.arange(ROWS * D, dtype=jnp.float32).reshape(ROWS, D)
    rows = make_rows(1, ROWS)[0]
    padded = np.concatenate([table, np.zeros((U, D), np.float32)])
    np.testing.assert_array_equal(fetch(table, jnp.asarray(rows), exchange="gather"), padded[rows])
    state = {"count": jnp.zeros(ROWS, jnp.int32)}
    updated, _ = deliver(
        add_to, table, state, jnp.asarray(rows), jnp.ones((U, D)), exchange="gather"
    )
    moved = np.isin(np.arange(ROWS), rows)
    np.testing.assert_array_equal(
        np.asarray(updated) - np.asarray(table), np.repeat(moved[:, None], D, 1)
    )
