"""The device mesh, and which axis of it each dimension of each array is spread over."""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree

from gr_jax.config import ConfigError, MeshConfig, ShardingRules
from gr_jax.data.batches.batch import Share


def make_mesh(config: MeshConfig) -> Mesh:
    """A mesh with axes `data` and `model` over the visible devices.

    Raises:
      ConfigError: the axes need more devices than there are, or leave some of another process
        unused.
    """
    devices = jax.devices()
    data = config.data or len(devices) // config.model
    if data * config.model > len(devices) or data == 0:
        needed = f"mesh.data={data} x mesh.model={config.model}"
        raise ConfigError(
            f"{needed} needs {max(data, 1) * config.model} devices, {len(devices)} visible"
        )
    if jax.process_count() > 1 and data * config.model != len(devices):
        needed = f"mesh.data={data} x mesh.model={config.model}"
        raise ConfigError(
            f"{needed} leaves devices of {jax.process_count()} processes unused:"
            f" all are {len(devices)}"
        )
    shape = (data, config.model)
    return Mesh(
        np.array(devices[: data * config.model]).reshape(shape),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
    )


def path_name(path: tuple) -> str:
    """A tree path as text, such as `opt_state/0/mu/blocks/1/uvqk`."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def by_path(tree: PyTree, rules: ShardingRules, mesh: Mesh | AbstractMesh) -> PyTree:
    """A NamedSharding for every array of `tree`.

    The first rule whose pattern is in its path decides; without one the array is replicated.
    Optimizer moments carry the path of their parameter, so one rule places both; moments of entries
    have fewer dimensions, which are the first of the rule.

    Raises:
      ConfigError: a dimension does not divide by the devices it is spread over.
    """

    def place(path: tuple, leaf: PyTree) -> NamedSharding:
        name = path_name(path)
        for pattern, axes in rules:
            if re.search(pattern, name):
                _check_divides(name, leaf.shape, axes, mesh)
                return NamedSharding(mesh, PartitionSpec(*axes[: len(leaf.shape)]))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, tree)


def _check_divides(
    name: str, shape: tuple[int, ...], axes: tuple, mesh: Mesh | AbstractMesh
) -> None:
    for size, axis in zip(shape, axes, strict=False):
        names = (axis,) if isinstance(axis, str) else axis or ()
        devices = int(np.prod([mesh.shape[n] for n in names]))
        if size % devices:
            raise ConfigError(
                f"{name} has a dimension of {size}, which {devices} devices"
                f" ({', '.join(names)}) do not divide"
            )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the `data` axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def share_of_process(mesh: Mesh) -> Share:
    """The part of each batch whose rows lie on devices of this process; see `share_of_rows`."""
    owner = np.vectorize(lambda device: device.process_index)(mesh.devices)
    return share_of_rows(owner, jax.process_index())


def share_of_rows(owner: Int[np.ndarray, "data model"], process: int) -> Share:
    """The part of each batch that `process` fills.

    owner: the process that has each device of the mesh.

    Processes that share the devices along `model` of the same rows hold the same part.

    Raises:
      ConfigError: the rows do not divide evenly among the processes.
    """
    data, model = owner.shape
    mine = np.flatnonzero((owner == process).any(axis=1))
    size = len(mine)
    if data % size or mine[0] % size or mine[-1] - mine[0] != size - 1:
        raise ConfigError(
            f"mesh.data={data} x mesh.model={model}: the devices of process {process} hold"
            f" rows {mine.tolist()} of {data}; choose a mesh.model that divides"
            " the devices of a process, or is a multiple of them"
        )
    return Share(int(mine[0]) // size, data // size, device_multiple=data)


def on_mesh(mesh: Mesh, function: Callable) -> Callable:
    """`function`, called with `mesh` as the ambient mesh.

    That is where the attention kernels and the tables find the axes of the batch.
    """

    def call(*args):
        with jax.set_mesh(mesh):
            return function(*args)

    return call


def put(tree: PyTree, placement: NamedSharding) -> PyTree:
    """Global arrays from this process's part of them."""
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(placement, a), tree)


def put_whole(tree: PyTree, placement: NamedSharding) -> PyTree:
    """Global arrays from the whole of them, which every process has."""
    if jax.process_count() == 1:
        return jax.device_put(tree, placement)
    return jax.tree.map(
        lambda a: jax.make_array_from_callback(a.shape, placement, a.__getitem__), tree
    )
