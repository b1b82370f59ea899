"""Lookup of a table whose rows are spread over a mesh, against indexing in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gr_jax.models.lookup import add_entries, take_entries
from tests.compiled import collectives

ROWS, D = 64, 4
MESHES = [(1, 8), (2, 1), (2, 4), (4, 2), (8, 1)]


def make_mesh(data: int, model: int) -> Mesh:
    devices = np.array(jax.devices()[: data * model]).reshape(data, model)
    return Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def make_inputs(shape=(8, 3)):
    rng = np.random.default_rng(0)
    return rng.normal(size=(ROWS, D)).astype(np.float32), rng.integers(0, ROWS, shape)


def placed(mesh, table, ids):
    over_rows, over_data = PartitionSpec(("data", "model")), PartitionSpec("data")
    return jax.device_put(table, NamedSharding(mesh, over_rows)), jax.device_put(
        ids, NamedSharding(mesh, over_data)
    )


def loss(table, ids, weights):
    return jnp.sum(take_entries(table, ids) * weights)


@pytest.mark.parametrize(("data", "model"), MESHES)
def test_a_table_over_a_mesh_gives_the_rows_and_gradient_of_one_device(data, model):
    table, ids = make_inputs()
    weights = np.random.default_rng(1).normal(size=(*ids.shape, D)).astype(np.float32)
    expected = np.zeros_like(table)
    np.add.at(expected, ids, weights)
    mesh = make_mesh(data, model)
    table_on, ids_on = placed(mesh, table, ids)
    with jax.set_mesh(mesh):
        rows, gradient = jax.jit(lambda t, i: (take_entries(t, i), jax.grad(loss)(t, i, weights)))(
            table_on, ids_on
        )
    np.testing.assert_array_equal(rows, table[ids])
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_no_collective_is_as_large_as_the_table():
    mesh = make_mesh(4, 2)
    rows = 1 << 20
    split = (
        NamedSharding(mesh, PartitionSpec(("data", "model"))),
        NamedSharding(mesh, PartitionSpec("data")),
    )
    table = jax.ShapeDtypeStruct((rows, D), jnp.float32, sharding=split[0])
    ids = jax.ShapeDtypeStruct((8, 3), jnp.int32, sharding=split[1])
    weights = jax.ShapeDtypeStruct((8, 3, D), jnp.float32, sharding=split[1])
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss), out_shardings=(None, split[0]))
        moved = collectives(step.lower(table, ids, weights).compile())
    assert {"all-gather", "reduce-scatter"} <= {kind for kind, _ in moved}
    assert max(size for _, size in moved) <= 8 * 3 * D  # the vectors of all tokens


def test_ids_that_do_not_divide_by_the_mesh_are_looked_up_all_the_same():
    table, ids = make_inputs((3, 2))
    with jax.set_mesh(make_mesh(4, 2)):
        np.testing.assert_array_equal(jax.jit(take_entries)(table, ids), table[ids])


def test_each_part_of_a_batch_has_its_own_table():
    tables = np.random.default_rng(2).normal(size=(2, ROWS, D)).astype(np.float32)
    _, ids = make_inputs((6, 5))
    values = np.random.default_rng(3).normal(size=(6, 5, D)).astype(np.float32)
    expected = np.stack([tables[row // 3][ids[row]] for row in range(6)])
    np.testing.assert_array_equal(take_entries(jnp.asarray(tables), jnp.asarray(ids)), expected)
    added = tables.copy()
    for row in range(6):
        np.add.at(added[row // 3], ids[row], values[row])
    np.testing.assert_allclose(
        add_entries(jnp.asarray(tables), jnp.asarray(ids), jnp.asarray(values)),
        added,
        rtol=1e-6,
        atol=1e-6,
    )


def test_a_low_precision_table_gives_float32():
    table, ids = make_inputs()
    rows = take_entries(jnp.asarray(table, jnp.bfloat16), jnp.asarray(ids))
    assert rows.dtype == jnp.float32
    np.testing.assert_array_equal(rows, table.astype(jnp.bfloat16).astype(np.float32)[ids])
