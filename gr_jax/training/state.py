"""The state of a training: step, parameters, optimizer state; created already sharded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import PRNGKeyArray, PyTree

from gr_jax import hardware
from gr_jax.config import ConfigError, ShardingRules
from gr_jax.training import sharding
from gr_jax.training.tables.rowwise import split_tables


@dataclass(frozen=True)
class TrainState:
    """A point in a training run.

    The position in the data is `step` itself: batch i is a function of (seed, i). The leaves are
    arrays, or one object for each array: a shape, a sharding.
    """

    step: PyTree  # int32 scalar: optimizer steps taken
    params: dict  # nested dict of float32 arrays; row-wise tables may be bfloat16
    opt_state: PyTree  # of the optimizer, same sharding as the parameters it belongs to
    # entries of the items and counts, see `tables.admission`; None: the entry of an item is its id
    vocabulary: PyTree = None


def _fields(
    state: TrainState,
) -> tuple[list[tuple[object, PyTree]], tuple[str, ...]]:
    # Without a vocabulary there is no such node: a checkpoint is what it was before there were any.
    names = ("step", "params", "opt_state") + (
        ("vocabulary",) if state.vocabulary is not None else ()
    )
    return [(jax.tree_util.GetAttrKey(name), getattr(state, name)) for name in names], names


jax.tree_util.register_pytree_with_keys(
    TrainState, _fields, lambda names, values: TrainState(*values)
)


def planned(
    init_params: Callable[[PRNGKeyArray], dict],
    init_opt_state: Callable[[dict], PyTree],
    *,
    mesh: Mesh,
    rules: ShardingRules,
    vocabulary: PyTree = None,
) -> TrainState:
    """Shapes, dtypes and shardings of the state that `create` makes of the same arguments.

    Nothing is allocated.
    """
    return placed(shapes(init_params, init_opt_state, vocabulary), mesh=mesh, rules=rules)


def shapes(
    init_params: Callable[[PRNGKeyArray], dict],
    init_opt_state: Callable[[dict], PyTree],
    vocabulary: PyTree = None,
) -> TrainState:
    """Shapes and dtypes of a state at step 0, on no devices yet."""
    return jax.eval_shape(_initial(init_params, init_opt_state), jax.random.key(0), vocabulary)


def placed(unplaced: TrainState, *, mesh: Mesh | AbstractMesh, rules: ShardingRules) -> TrainState:
    """Shapes with the shardings that the rules give them on a mesh."""
    shardings = sharding.by_path(unplaced, rules, mesh)
    return jax.tree.map(
        lambda a, over: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=over), unplaced, shardings
    )


def create(
    init_params: Callable[[PRNGKeyArray], dict],
    init_opt_state: Callable[[dict], PyTree],
    key: PRNGKeyArray,
    *,
    mesh: Mesh,
    rules: ShardingRules,
    vocabulary: PyTree = None,
) -> tuple[TrainState, TrainState]:
    """A fresh state and its shardings.

    No device ever holds an unsharded copy of a sharded parameter.

    vocabulary: host arrays, see `TrainState`.

    Returns:
      The state, and a TrainState of NamedShardings with the same structure.
    """
    shardings = shardings_of(
        planned(init_params, init_opt_state, mesh=mesh, rules=rules, vocabulary=vocabulary)
    )
    init = jax.jit(_initial(init_params, init_opt_state), out_shardings=shardings)
    return init(key, vocabulary), shardings


def _initial(
    init_params: Callable[[PRNGKeyArray], dict], init_opt_state: Callable[[dict], PyTree]
) -> Callable[[PRNGKeyArray, PyTree], TrainState]:
    def init(key: PRNGKeyArray, vocabulary: PyTree) -> TrainState:
        params = init_params(key)
        return TrainState(jnp.zeros((), jnp.int32), params, init_opt_state(params), vocabulary)

    return init


def shardings_of(state: TrainState) -> TrainState:
    """The sharding of each array of `state`, or of each shape that has one."""
    return jax.tree.map(lambda a: a.sharding, state)


def local_bytes(tree: PyTree) -> int:
    """Bytes of the shards of planned or placed arrays on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def check_fits(planned: TrainState) -> None:
    """Check that there is memory for a planned state and gradients, before any is allocated.

    XLA on a CPU would wait for ever, deaf to signals, for memory that is not there.

    Raises:
      ConfigError: a device, or a host of CPU devices, has less.
    """
    devices = jax.tree.leaves(planned)[0].sharding.mesh.local_devices
    row_wise = isinstance(planned.opt_state, dict)  # a table has gradients of a batch's entries
    gradients = split_tables(planned.params)[1] if row_wise else planned.params
    needed, where = local_bytes((planned, gradients)), f"a {devices[0].device_kind}"
    have = (devices[0].memory_stats() or {}).get("bytes_limit")
    if have is None:  # devices that share the memory of the host
        needed, where, have = needed * len(devices), "this machine", hardware.host_memory()
    if needed > have:
        raise ConfigError(
            f"parameters, gradients and the state of the optimizer take {needed / 2**30:,.1f} GiB,"
            f" more than the {have / 2**30:,.1f} GiB of {where}: make config.model smaller, or use"
            " more devices"
        )


def free(state: TrainState) -> None:
    """Release the memory of all arrays of `state` at once, even if they are still referred to."""
    jax.tree.map(lambda a: a.delete(), state)


def abstract(state: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of `state`: the target that a checkpoint is restored into."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
    )
