"""The row-wise step against the dense one, and its memory and traffic as the table grows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr_jax.data.batches import epochs
from gr_jax.data.batches.loader import read_batches
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from gr_jax.training import sharding, state
from gr_jax.training.checkpoint import Checkpoints, Progress
from gr_jax.training.optimizer import make_optimizer
from gr_jax.training.ranking import step as ranking_step
from gr_jax.training.ranking.objective import Ranking
from gr_jax.training.retrieval.step import make_train_step
from gr_jax.training.tables.rowwise import RowRule, RowwiseOptimizer
from tests.compiled import collectives
from tests.training.ranking.test_objective import open_run
from tests.training.test_sharding import ITEMS, losses_of, make_config, make_log, start

# Gradient descent has no memory, so the dense and the sparse step must agree in every parameter.
DENSE_SGD = optax.sgd(1.0)
SPARSE_SGD = RowwiseOptimizer(
    DENSE_SGD, RowRule(lambda table: {}, lambda g, moments, count: (g, moments)), 1.0, 0.0
)


def assert_same_step(make_step, params, batch) -> None:
    """One step by `make_step(optimizer)` from the same parameters, dense and sparse."""
    results = []
    for optimizer in (DENSE_SGD, SPARSE_SGD):
        before = state.TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
        after, metrics = jax.jit(make_step(optimizer))(before, batch, jax.random.key(3))
        results.append((after.params, metrics))
    (dense, metrics), (sparse, sparse_metrics) = results
    assert float(sparse_metrics["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)
    moved = 0
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(dense), jax.tree.leaves(sparse), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6, err_msg=sharding.path_name(path))
        moved += "table" in sharding.path_name(path)
    assert moved >= 2
    item_table = lambda params: np.asarray(params["embeddings"]["item_table"])
    changed = (item_table(sparse) != item_table(params)).any(-1)
    assert 0 < changed.sum() < len(changed) and not changed[0]


@pytest.mark.parametrize(("loss", "log_q"), [("group", False), ("per_token", True)])
def test_retrieval_has_the_gradient_of_the_dense_step(loss, log_q):
    config = make_config(loss, 1, 1)
    sampler = "in_batch" if log_q else "uniform"
    config = dataclasses.replace(
        config, loss=dataclasses.replace(config.loss, log_q=log_q, sampler=sampler)
    )
    graphdef, init = make_model(
        config.model, ModelSizes(num_items=ITEMS, max_length=config.data.max_length)
    )
    rows = epochs.retrieval_batches(make_log(), config.data, batch_users=6, shards=2)
    frequency = jnp.linspace(-6, -2, len(init(jax.random.key(0))["embeddings"]["item_table"]))

    def make_step(optimizer):
        return make_train_step(
            graphdef, optimizer, config, num_items=ITEMS, item_log_q=frequency if log_q else None
        )

    assert_same_step(make_step, init(jax.random.key(0)), rows.batch(0))


@pytest.mark.parametrize("kind", ["hstu", "dlrm"])
def test_ranking_has_the_gradient_of_the_dense_step(kind, tmp_path):
    run = open_run(kind, 1, tmp_path)
    batch = Ranking(run).plan.batch(0)
    make_step = lambda optimizer: ranking_step.make_train_step(run.graphdef, optimizer, run.config)
    assert_same_step(make_step, run.init_params(jax.random.key(0)), batch)


def compiled_step(items: int, data: int, model: int, **optimizer):
    """A step over `items` items, compiled from shapes alone."""
    config = make_config("group", data, model, **optimizer)
    mesh = sharding.make_mesh(config.mesh)
    graphdef, init = make_model(
        config.model, ModelSizes(num_items=items, max_length=config.data.max_length)
    )
    optimizer = make_optimizer(config.optimizer)

    def fresh(key):
        params = init(key)
        return state.TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    shapes = jax.eval_shape(fresh, jax.random.key(0))
    placements = sharding.by_path(shapes, config.mesh.rules, mesh)
    place = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    batch = epochs.retrieval_batches(make_log(), config.data, batch_users=24, shards=8).batch(0)
    batch = sharding.put(batch, sharding.batch_sharding(mesh))
    train_step = make_train_step(graphdef, optimizer, config, num_items=items, item_log_q=None)
    fields, structure = jax.tree.flatten(batch)  # a batch of shapes is none to the type checker

    def step(state, fields, key):
        return train_step(state, jax.tree.unflatten(structure, fields), key)

    step = jax.jit(step, donate_argnums=0, out_shardings=(placements, sharding.replicated(mesh)))
    abstract = jax.tree.map(place, shapes, placements)
    return sharding.on_mesh(mesh, step.lower)(abstract, fields, jax.random.key(0)).compile()


@pytest.mark.parametrize(
    ("data", "model", "exchange"), [(1, 1, "gather"), (4, 2, "gather"), (4, 2, "all_to_all")]
)
def test_temporaries_and_traffic_of_a_step_do_not_grow_with_the_table(data, model, exchange):
    small, large = (
        compiled_step(items, data, model, table="rowwise_adamw", exchange=exchange)
        for items in (20_000, 400_000)
    )
    table_shard = 400_000 * 16 * 4 / (data * model)
    temporaries = [step.memory_analysis().temp_size_in_bytes for step in (small, large)]
    assert temporaries[1] == pytest.approx(temporaries[0], rel=0.01)
    assert (
        large.memory_analysis().alias_size_in_bytes > 2 * table_shard
    )  # table and first moment change in place
    assert collectives(large) == collectives(small)
    if data > 1:
        assert max(size for _, size in collectives(large)) < 0.1 * 20_000 * 16


def test_a_sparse_state_is_saved_and_resumed_on_another_mesh(tmp_path):
    optimizer = {"table": "rowwise_adamw", "table_dtype": "bfloat16"}
    whole, _ = losses_of(make_config("group", 8, 1, **optimizer), steps=6)
    rows = epochs.retrieval_batches(
        make_log(), make_config("group", 1, 1).data, batch_users=24, shards=8
    )
    losses, saved = [], 0
    for data, model, exchange in ((4, 2, "gather"), (2, 1, "all_to_all")):
        mesh, train_state, step = start(make_config("group", data, model, exchange, **optimizer))
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        if saved:
            restored = checkpoints.restore(state.abstract(train_state))
            assert restored is not None
            train_state = restored[0]
            assert int(train_state.step) == saved
        for batch in read_batches(rows, saved, saved + 3):
            train_state, metrics = step(
                train_state, sharding.put(batch, sharding.batch_sharding(mesh)), jax.random.key(1)
            )
            losses.append(float(metrics["loss"]))
        saved += 3
        checkpoints.save(saved, train_state, Progress())
        checkpoints.close()
    np.testing.assert_allclose(losses, whole, rtol=1e-4)
