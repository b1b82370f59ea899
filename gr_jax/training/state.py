"""What training changes: step, parameters, optimizer state; created already sharded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from gr_jax.config import ShardingRules
from gr_jax.training import sharding
from gr_jax.training.optimizer import Optimizer


@dataclass(frozen=True)
class TrainState:
    """A point in a training run. The data position is `step` itself: batch i is a function of (seed, i).

    The leaves are arrays, or one thing for each array: shapes, shardings.
    """

    step: Any  # int32 scalar: optimizer steps taken
    params: dict  # nested dict of float32 arrays; row-wise tables may be bfloat16
    opt_state: Any  # of the optimizer, same sharding as the parameters it belongs to
    vocabulary: Any = None  # rows of the items, and counts of these; see `training.vocabulary`. None: row = item id


def _fields(state: TrainState) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
    # Without a vocabulary there is no such node: a checkpoint is what it was before there were any.
    names = ("step", "params", "opt_state") + (("vocabulary",) if state.vocabulary is not None else ())
    return [(jax.tree_util.GetAttrKey(name), getattr(state, name)) for name in names], names


jax.tree_util.register_pytree_with_keys(TrainState, _fields, lambda names, values: TrainState(*values))


def create(
    init_params: Callable[[PRNGKeyArray], dict],
    optimizer: Optimizer,
    key: PRNGKeyArray,
    *,
    mesh: jax.sharding.Mesh,
    rules: ShardingRules,
    vocabulary: Any = None,
) -> tuple[TrainState, TrainState]:
    """A fresh state and its shardings; no device ever holds an unsharded copy of a sharded parameter.

    vocabulary: host arrays, None = row = item id.

    Returns:
      The state, and a TrainState of NamedShardings with the same structure.
    """

    def init(key: PRNGKeyArray, vocabulary: Any) -> TrainState:
        params = init_params(key)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), vocabulary)

    shardings = sharding.by_path(jax.eval_shape(init, key, vocabulary), rules, mesh)
    return jax.jit(init, out_shardings=shardings)(key, vocabulary), shardings


def abstract(state: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of `state`: the target that a checkpoint is restored against."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
