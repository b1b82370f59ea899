"""The plan of a run: memory, cost and traffic of a step, and changes that would make it fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from gr_jax.config import Config, ConfigError
from gr_jax.hardware import Device
from gr_jax.planning import collectives, compiled_step, cost, memory
from gr_jax.planning.sizes import Sizes
from gr_jax.training.sharding import path_name

# of a device's memory: the rest is the driver's, the collectives' buffers and fragments
USABLE = 0.9


@dataclass(frozen=True)
class Plan:
    """Needs of one training step on each of the devices."""

    data: int  # devices along the batch
    model: int  # devices along heads
    parameters: int  # of the whole model
    table_parameters: int  # of them in tables
    parts: tuple[memory.Part, ...]
    exchanges: tuple[collectives.Exchange, ...]
    cost: cost.Cost

    @property
    def devices(self) -> int:
        """Devices in all."""
        return self.data * self.model

    @property
    def bytes(self) -> float:
        """Memory of one device."""
        return sum(part.bytes for part in self.parts)


def mesh_shape(config: Config, devices: int) -> tuple[int, int]:
    """Devices along `data` and `model` of a run on this number of devices.

    Raises:
      ConfigError: `config.mesh` does not fit them.
    """
    model = config.mesh.model
    data = config.mesh.data or devices // model
    if data * model != devices:
        raise ConfigError(
            f"--devices={devices}: config.mesh.data={config.mesh.data} x"
            f" config.mesh.model={model} is another number"
        )
    return data, model


def abstract_mesh(data: int, model: int) -> AbstractMesh:
    """A mesh without devices."""
    return AbstractMesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def make_plan(
    config: Config,
    sizes: Sizes,
    device: Device,
    *,
    data: int,
    model: int,
    peak: int | None = None,
) -> Plan:
    """The plan of a run on a mesh of `data` x `model` devices.

    Args:
      config: of an HSTU.
      sizes: of the run; `data` divides its `batch_rows`.
      device: whose rates bound the time.
      data, model: the mesh.
      peak: bytes that XLA allocates for the compiled step; None = by the formulas for a GPU.

    Raises:
      ConfigError: an array does not divide over the mesh, or the formulas do not know the model.
    """
    state = compiled_step.abstract_state(config, sizes, abstract_mesh(data, model))
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    count = {path_name(path): math.prod(leaf.shape) for path, leaf in leaves}
    platform = "cpu" if device.name == "cpu" else "gpu"
    exchanges = collectives.exchanges(config, sizes, state, platform=platform)
    if peak is None:
        parts = memory.on_gpu(config, sizes, state)
    else:
        parts = memory.compiled(config, sizes, state, peak)
    return Plan(
        data=data,
        model=model,
        parameters=sum(count.values()),
        table_parameters=sum(n for name, n in count.items() if collectives.is_table(name)),
        parts=parts,
        exchanges=exchanges,
        cost=cost.cost(config, sizes, state, exchanges, device, data * model),
    )


def remedies(config: Config, sizes: Sizes, device: Device, plan: Plan) -> list[tuple[str, float]]:
    """Changes, and the memory of a GPU with each of them alone; the last is a number of devices.

    More devices share the same global batch. A row-wise optimizer keeps one number for each entry
    of a table instead of two for each element, and has gradients of the entries of a batch only; a
    full softmax cannot have one.
    """
    found = []
    for change, changed in _changes(config, sizes):
        need = make_plan(changed, sizes, device, data=plan.data, model=plan.model).bytes
        found.append((change, need))

    data = plan.data
    while data < 65536:
        data *= 2
        larger = dataclasses.replace(sizes, batch_rows=-(-sizes.batch_rows // data) * data)
        try:
            need = make_plan(config, larger, device, data=data, model=plan.model).bytes
        except ConfigError:
            break  # the entries of a table do not divide by this number of devices
        if need <= USABLE * device.memory:
            found.append((f"{data * plan.model} devices", need))
            break
    return found


def _changes(config: Config, sizes: Sizes) -> Iterator[tuple[str, Config]]:
    if not config.model.remat:
        yield "model.remat=True", _with_model(config, remat=True)
    if config.model.compute_dtype != "bfloat16":
        yield "model.compute_dtype=bfloat16", _with_model(config, compute_dtype="bfloat16")
    if config.optimizer.table == "dense" and (config.loss.kind != "full" or sizes.num_tasks):
        change = "optimizer.table=rowwise_adagrad and mesh.exchange=all_to_all"
        yield change, with_row_wise_tables(config)


def with_row_wise_tables(config: Config) -> Config:
    """The config with the table rule of least memory and the exchange of fewest bytes."""
    optimizer = dataclasses.replace(config.optimizer, table="rowwise_adagrad")
    mesh = dataclasses.replace(config.mesh, exchange="all_to_all")
    return dataclasses.replace(config, optimizer=optimizer, mesh=mesh)


def _with_model(config: Config, **fields: Any) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))
