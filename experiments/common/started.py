"""Training of retrieval at step 0, without a loop or a folder, to time or compare its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from gr_jax.config import Config
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from gr_jax.training import sharding, state
from gr_jax.training.optimizer import Optimizer, make_optimizer
from gr_jax.training.retrieval.step import make_train_step


@dataclasses.dataclass
class Started:
    """A state, its jitted step and the mesh they are on."""

    mesh: jax.sharding.Mesh
    graphdef: nnx.GraphDef
    state: state.TrainState
    step: Any

    def on_device(self, batch: Any) -> Any:
        """The batch where the step wants it."""
        return sharding.put(batch, sharding.batch_sharding(self.mesh))


def retrieval_step(
    graphdef: nnx.GraphDef, optimizer: Optimizer, config: Config, items: int
) -> Callable:
    """The step of `gr_jax.train`."""
    return make_train_step(graphdef, optimizer, config, num_items=items, item_log_q=None)


def start(
    config: Config, items: int, *, make_step: Callable = retrieval_step, vocabulary: Any = None
) -> Started:
    """Training at step 0 by the seed of `config`.

    vocabulary: as of `training.tables.admission.initial`.
    """
    mesh, optimizer = sharding.make_mesh(config.mesh), make_optimizer(config.optimizer)
    rows, max_length = config.vocabulary.table_ids(items), config.data.max_length
    graphdef, init = make_model(config.model, ModelSizes(num_items=rows, max_length=max_length))
    key, rules = jax.random.key(config.seed), config.mesh.rules
    fresh, shardings = state.create(
        init, optimizer.init, key, mesh=mesh, rules=rules, vocabulary=vocabulary
    )
    step = make_step(graphdef, optimizer, config, items)
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))
    return Started(mesh, graphdef, fresh, step)
