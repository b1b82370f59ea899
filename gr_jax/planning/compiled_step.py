"""The training step compiled from shapes alone: no data, no parameters, perhaps no devices."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import PRNGKeyArray

from gr_jax.config import Config, ModelConfig, OptimizerConfig
from gr_jax.data.batches.batch import Batch
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from gr_jax.planning import hlo
from gr_jax.training import sharding, state
from gr_jax.training.optimizer import make_optimizer
from gr_jax.training.ranking import step as ranking
from gr_jax.training.retrieval import step as retrieval
from gr_jax.training.tables import admission
from gr_jax.training.tables.rowwise import cast_tables

if TYPE_CHECKING:  # a step is compiled where polars, which reads the sizes of a log, is missing
    from gr_jax.planning.sizes import Sizes


def abstract_batch(sizes: Sizes, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The fields of a global batch, its rows over the `data` axis."""
    placement = sharding.batch_sharding(mesh)
    shape = (sizes.batch_rows, sizes.row_length)

    def of(dtype: Any, *width: int) -> Any:
        return jax.ShapeDtypeStruct((*shape, *width), dtype, sharding=placement)

    fields: dict[str, Any] = {
        name: of(jnp.int32) for name in ("item", "time", "query_time", "position", "segment")
    }
    if sizes.num_tasks:
        fields |= {name: of(jnp.float32, sizes.num_tasks) for name in ("outcome", "outcome_weight")}
    else:
        fields["label"] = of(jnp.int32)
    if sizes.num_actions:
        fields["action"] = of(jnp.int32)
    if sizes.item_features:
        fields["item_features"] = of(jnp.int32, sizes.item_features)
    if sizes.user_features or sizes.max_series:
        fields["user_feature"] = of(jnp.int32)
    if mesh.shape["data"] > 1:
        fields["row"] = jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=placement)
    return fields


def abstract_state(config: Config, sizes: Sizes, mesh: Mesh | AbstractMesh) -> state.TrainState:
    """Shapes, dtypes and shardings of the training state."""
    table_ids = config.vocabulary.table_ids(sizes.num_items)
    model_sizes = sizes.model(config.ranking.tasks, devices=mesh.size)
    model_sizes = dataclasses.replace(model_sizes, num_items=table_ids)
    shapes = _shapes(config.model, config.optimizer, model_sizes)
    shapes = dataclasses.replace(
        shapes,
        vocabulary=admission.shapes(config.vocabulary, sizes.num_items, devices=mesh.size),
    )
    return state.placed(shapes, mesh=mesh, rules=config.mesh.rules)


@functools.lru_cache(maxsize=8)  # a plan needs them for several meshes
def _shapes(model: ModelConfig, optimizer: OptimizerConfig, sizes: ModelSizes) -> state.TrainState:
    _, init = make_model(model, sizes)
    return state.shapes(
        lambda key: cast_tables(init(key), optimizer.table_dtype), make_optimizer(optimizer).init
    )


def compile_step(config: Config, sizes: Sizes, mesh: Mesh) -> jax.stages.Compiled:
    """The jitted training step of `config` on `mesh`, as `gr_jax.train` runs it."""
    graphdef, _ = make_model(config.model, sizes.model(config.ranking.tasks))
    optimizer = make_optimizer(config.optimizer)
    if sizes.num_tasks:
        step = ranking.make_train_step(graphdef, optimizer, config)
    else:
        step = retrieval.make_train_step(
            graphdef, optimizer, config, num_items=sizes.num_items, item_log_q=None
        )
    train_state, batch = abstract_state(config, sizes, mesh), abstract_batch(sizes, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shardings = state.shardings_of(train_state)

    def from_fields(train_state: state.TrainState, fields: dict, key: PRNGKeyArray) -> Any:
        return step(train_state, Batch(**fields), key)

    jitted = jax.jit(
        from_fields, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh))
    )
    with jax.set_mesh(mesh):
        return jitted.lower(train_state, batch, key).compile()


def allocated(executable: jax.stages.Compiled) -> dict[str, int]:
    """Bytes that XLA allocates on a device: argument, output, alias of both, temp, peak of all."""
    analysis = executable.memory_analysis()
    names = ("argument", "output", "alias", "temp")
    sizes = {name: int(getattr(analysis, f"{name}_size_in_bytes")) for name in names}
    return sizes | {"peak": sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]}


def collectives(executable: jax.stages.Compiled, devices: int) -> list[hlo.Collective]:
    """The collectives of a compiled step, without those of a device with itself."""
    text = executable.as_text()
    assert text is not None
    return [found for found in hlo.collectives(text, devices) if found.devices > 1]
