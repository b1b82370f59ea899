import dataclasses
import functools
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import pytest

from gr_jax.config import (
    FSDP,
    Config,
    ConfigError,
    DataConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from gr_jax.data.batches import epochs
from gr_jax.data.batches.batch import Batch, Share
from gr_jax.data.batches.loader import read_batches
from gr_jax.data.dataset import Dataset
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from gr_jax.training import sharding, state
from gr_jax.training.optimizer import make_optimizer
from gr_jax.training.retrieval.step import make_train_step
from gr_jax.training.tables.rowwise import cast_tables
from tests.training.random_log import random_log

ITEMS, USERS = 300, 64
ROOT = Path(__file__).resolve().parents[2]


def make_log() -> Dataset:
    rng = np.random.default_rng(0)
    return random_log(rng, counts=rng.integers(6, 20, USERS), num_items=ITEMS)


def make_config(loss: str, data: int, model: int, exchange: str = "gather", **optimizer) -> Config:
    return Config(
        data=DataConfig(max_length=16, row_length=32),
        model=ModelConfig(
            width=16, num_blocks=1, num_heads=2, qk_width=8, v_width=8, swiglu_width=24
        ),
        loss=LossConfig(kind=loss, negatives=16, group=8, chunk_tokens=64),
        train=TrainConfig(batch_users=24),
        optimizer=OptimizerConfig(**optimizer),
        mesh=MeshConfig(data=data, model=model, exchange=exchange),
    )


def start(config: Config):
    mesh = sharding.make_mesh(config.mesh)
    graphdef, init = make_model(
        config.model,
        ModelSizes(num_items=ITEMS, max_length=config.data.max_length, devices=mesh.size),
    )
    fresh = lambda key: cast_tables(init(key), config.optimizer.table_dtype)
    optimizer = make_optimizer(config.optimizer)
    key = jax.random.key(config.seed)
    train_state, shardings = state.create(
        fresh, optimizer.init, key, mesh=mesh, rules=config.mesh.rules
    )
    step = make_train_step(graphdef, optimizer, config, num_items=ITEMS, item_log_q=None)
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))
    return mesh, train_state, sharding.on_mesh(mesh, step)


def losses_of(config: Config, steps: int = 20, batches: Iterable[Batch] | None = None):
    mesh, train_state, step = start(config)
    if batches is None:
        rows = epochs.retrieval_batches(
            make_log(), config.data, batch_users=24, shards=config.mesh.data
        )
        batches = read_batches(rows, 0, steps)
    losses = []
    for batch in batches:
        batch = sharding.put(batch, sharding.batch_sharding(mesh))
        train_state, metrics = step(train_state, batch, jax.random.key(1))
        losses.append(float(metrics["loss"]))
    return np.array(losses), train_state


@functools.cache
def losses_of_one_device(loss: str, steps: int = 20, **optimizer) -> np.ndarray:
    return losses_of(make_config(loss, 1, 1, **optimizer), steps)[0]


def test_a_planned_state_is_a_fresh_one_without_its_memory():
    config = make_config("group", 4, 2, table="rowwise_adamw", table_dtype="bfloat16")
    mesh, optimizer, rules = (
        sharding.make_mesh(config.mesh),
        make_optimizer(config.optimizer),
        config.mesh.rules,
    )
    _, init = make_model(
        config.model, ModelSizes(num_items=ITEMS, max_length=config.data.max_length)
    )
    fresh = lambda key: cast_tables(init(key), config.optimizer.table_dtype)
    rows = {"rows": np.zeros((ITEMS, 2), np.int32)}
    made, shardings = state.create(
        fresh, optimizer.init, jax.random.key(7), mesh=mesh, rules=rules, vocabulary=rows
    )
    planned = state.planned(fresh, optimizer.init, mesh=mesh, rules=rules, vocabulary=rows)
    assert planned == state.abstract(made) and state.shardings_of(planned) == shardings
    state.free(made)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(made))


@pytest.mark.parametrize(
    ("loss", "meshes"),
    [
        ("full", ((8, 1), (3, 1))),
        ("per_token", ((4, 2),)),
        ("group", ((8, 1), (3, 2))),
    ],
)
def test_any_number_of_devices_trains_to_the_same_losses(loss, meshes):
    one = losses_of_one_device(loss)
    assert one[-1] < one[0]
    for data, model in meshes:
        many, train_state = losses_of(make_config(loss, data, model))
        np.testing.assert_allclose(many, one, rtol=1e-4)
        assert_sharded(train_state, data * model)


# Every way in which entries travel; experiments/speed/sparse_step.py goes through all shapes of
# meshes.
@pytest.mark.parametrize(
    ("data", "model", "exchange", "optimizer"),
    [
        (8, 1, "gather", {"table": "rowwise_adamw", "weight_decay": 0.01}),
        (4, 2, "all_to_all", {"table": "rowwise_adagrad", "table_learning_rate": 0.01}),
    ],
)
def test_a_sparse_optimizer_trains_to_the_same_losses_on_a_mesh(data, model, exchange, optimizer):
    one = losses_of_one_device("group", steps=20, **optimizer)
    many, train_state = losses_of(
        make_config("group", data, model, exchange, **optimizer), steps=20
    )
    assert one[-5:].mean() < one[:5].mean()
    np.testing.assert_allclose(many, one, rtol=1e-4)
    assert_sharded(
        train_state, data * model, arrays=3 if optimizer["table"] == "rowwise_adamw" else 2
    )


def assert_sharded(train_state: state.TrainState, devices: int, arrays: int = 3) -> None:
    """Every array of a table or its moments is split over all devices.

    Nothing large is replicated.
    """
    tables = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(train_state):
        name = sharding.path_name(path)
        shard = leaf.addressable_shards[0].data.size
        if "item_table" in name:
            tables += 1
            assert shard * devices == leaf.size, f"{name} is not split over the {devices} devices"
        elif leaf.size > 0.1 * ITEMS * 16:
            assert not leaf.sharding.is_fully_replicated or not matches_a_rule(name), (
                f"{name} is replicated"
            )
    assert tables == arrays, "parameter and its moments"


def matches_a_rule(name: str) -> bool:
    # On a mesh with one device along `model`, a rule over `model` alone leaves the array whole.
    return any(
        re.search(pattern, name) and ("data" in str(axes)) for pattern, axes in MeshConfig().rules
    )


def test_optimizer_moments_are_placed_as_their_parameters():
    _, train_state, _ = start(make_config("full", 4, 2))
    params = {
        sharding.path_name(p): a.sharding
        for p, a in jax.tree_util.tree_leaves_with_path(train_state.params)
    }
    moments = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(train_state.opt_state):
        name = sharding.path_name(path)
        owner = [
            placement for parameter, placement in params.items() if name.endswith("/" + parameter)
        ]
        if owner:
            moments += 1
            assert leaf.sharding == owner[0], name
    assert moments == 2 * len(params)


def test_wide_projections_are_split_over_the_model_axis():
    _, train_state, _ = start(make_config("full", 4, 2))
    uvqk = train_state.params["blocks"][0]["uvqk"]
    assert uvqk.addressable_shards[0].data.shape == (16, 32)


@pytest.mark.parametrize("data, model", [(8, 1), (4, 2)])
def test_fsdp_spreads_matrices_and_moments_and_trains_to_the_same_losses(data, model):
    one = losses_of_one_device("group")
    config = make_config("group", data, model)
    config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, rules=FSDP))
    many, train_state = losses_of(config)
    np.testing.assert_allclose(many, one, rtol=1e-4)
    spread = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(train_state):
        name = sharding.path_name(path)
        if "uvqk" in name or "kernel" in name:
            spread += 1
            assert leaf.addressable_shards[0].data.size * data * model == leaf.size, name
    assert spread == 3 * 2, "parameter and both moments of two matrices"


def test_a_mesh_larger_than_the_machine_is_an_error_with_both_numbers():
    with pytest.raises(
        ConfigError, match="mesh.data=16 x mesh.model=1 needs 16 devices, 8 visible"
    ):
        sharding.make_mesh(MeshConfig(data=16))


def test_a_mesh_that_leaves_devices_of_a_process_unused_is_an_error(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(
        ConfigError,
        match="mesh.data=2 x mesh.model=2 leaves devices of 2 processes unused: all are 8",
    ):
        sharding.make_mesh(MeshConfig(data=2, model=2))


@pytest.mark.parametrize(
    ("data", "model", "shares"),
    [
        (8, 1, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (4, 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (
            2,
            4,
            [(0, 2), (0, 2), (1, 2), (1, 2)],
        ),  # two processes hold the same rows, each some of their heads
        (1, 8, [(0, 1)] * 4),
    ],
)
def test_a_process_fills_the_rows_of_its_devices(data, model, shares):
    owner = np.repeat(np.arange(4), 2).reshape(data, model)
    found = [sharding.share_of_rows(owner, process) for process in range(4)]
    assert found == [Share(index, count, device_multiple=data) for index, count in shares]


def test_rows_that_do_not_divide_among_processes_are_an_error():
    with pytest.raises(ConfigError, match=r"the devices of process 0 hold rows \[0, 1\] of 3"):
        sharding.share_of_rows(np.repeat(np.arange(2), 3).reshape(3, 2), 0)


def test_a_dimension_that_does_not_divide_is_an_error_that_names_it():
    config = make_config("full", 4, 2)
    config = dataclasses.replace(
        config, mesh=dataclasses.replace(config.mesh, rules=(("position_table", ("data",)),))
    )
    config = dataclasses.replace(config, data=DataConfig(max_length=15, row_length=32))
    with pytest.raises(ConfigError, match="position_table has a dimension of 15, which 4 devices"):
        start(config)


def test_a_step_can_be_made_where_grain_and_polars_are_not_installed():
    code = "import sys; sys.modules['grain'] = sys.modules['polars'] = None; "
    code += "import gr_jax.training.retrieval.step, gr_jax.training.sharding, "
    code += "gr_jax.training.state, gr_jax.planning.compiled_step"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
