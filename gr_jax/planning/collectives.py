"""Bytes that devices exchange in a training step, by what for: formulas of what the partitioner makes of the step.

T tokens of a global batch, D width, d and m devices along `data` and `model`, n = d m, s bytes of an activation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax

from gr_jax.config import Config
from gr_jax.planning.hlo import wire_bytes
from gr_jax.planning.sizes import Sizes
from gr_jax.training.sharding import path_name


@dataclass(frozen=True)
class Exchange:
    """One kind of traffic of a step."""

    what: str
    kind: str  # of the collectives, as XLA calls them
    devices: int  # that take part in each
    payload: float  # bytes of the whole arrays, summed over a step
    formula: str

    @property
    def wire(self) -> float:
        """Bytes that each device sends."""
        return wire_bytes(self.kind, self.payload, self.devices)


def exchanges(config: Config, sizes: Sizes, state: Any, *, platform: str) -> tuple[Exchange, ...]:
    """All traffic of a training step on the mesh that `state` (see `compiled.abstract_state`) is placed on.

    platform: cpu or gpu, where XLA makes a sum that is then divided a reduce-scatter.
    """
    mesh = jax.tree.leaves(state)[0].sharding.mesh
    data, model = mesh.shape["data"], mesh.shape["model"]
    if is_row_wise(config):
        lookups = _row_exchange(config, sizes, data, model)
    else:
        total = "all-reduce" if platform == "cpu" else "reduce-scatter"
        lookups = _lookups(config, sizes, data, model, total)
    found = [*lookups, *_blocks(config, sizes, data, model), *_parameters(state, data)]
    return tuple(x for x in found if x.devices > 1 and x.payload)


def _lookups(config: Config, sizes: Sizes, data: int, model: int, total: str) -> list[Exchange]:
    """Rows of the tables, which lie on all devices: ids go to all along `data`, rows to the devices that asked.

    total: the collective that sums where the partitioner looks rows up.
    """
    width, loss, tokens = config.model.width, config.loss, sizes.tokens
    devices = data * model
    found = [("input rows", tokens, "T", 1)]
    if sizes.item_values:
        found.append(("feature rows of items", tokens * sizes.item_values, "T F", 1))
    if sizes.contexts or sizes.max_series:
        found.append(("feature rows of users", tokens, "T", 1))
    made = []
    if not sizes.num_tasks and loss.kind == "full":
        made += [
            Exchange("vectors to score", "all-gather", devices, 8.0 * tokens * width, "2 x 4 T D"),
            Exchange("their gradients", total, devices, 4.0 * tokens * width, "4 T D"),
            Exchange("label rows, ids", "all-gather", devices, 4.0 * tokens, "4 T"),
            Exchange("label rows", total, devices, 4.0 * tokens * width, "4 T D"),
            Exchange("label rows, gradients", "all-gather", devices, 4.0 * tokens * width, "4 T D"),
        ]
    elif not sizes.num_tasks:
        group = loss.group if loss.kind == "group" else 1
        found.append(("label rows", tokens, "T", 2))
        found.append(("negative rows", tokens // group * loss.negatives, f"T K / {group}", 2))
    for what, rows, count, uses in found:
        size = 4.0 * rows * width
        made += [
            Exchange(f"{what}, ids", "all-gather", data, 4.0 * uses * rows, f"{uses} x 4 {count}"),
            Exchange(what, "reduce-scatter", data, size, f"4 {count} D"),
            Exchange(f"{what} over model", "all-reduce", model, size / data, f"4 {count} D / d"),
            Exchange(f"{what}, gradients", "all-gather", devices, size, f"4 {count} D"),
        ]
    return made


def _row_exchange(config: Config, sizes: Sizes, data: int, model: int) -> list[Exchange]:
    """Rows of tables with a row-wise rule: fetched once in a step, their gradients delivered once."""
    named, width = touched_rows(config, sizes), config.model.width
    share, size = named / data, 4.0 * named * width
    ids = 8.0 * named
    if config.mesh.exchange == "gather":
        return [
            Exchange("rows, ids", "all-gather", data, ids, "2 x 4 (rows named)"),
            Exchange("rows", "reduce-scatter", data, size, "4 (rows named) D"),
            Exchange(
                "rows over model", "all-reduce", model, 4.0 * share * width, "4 (rows named) D / d"
            ),
            Exchange("their gradients", "all-gather", data, size, "4 (rows named) D"),
        ]
    return [
        Exchange("rows, ids", "all-to-all", data * model, ids / data, "2 x 4 (rows named) / d"),
        Exchange("rows", "all-to-all", data * model, size / data, "4 (rows named) D / d"),
        Exchange(
            "rows over model", "all-reduce", model, 4.0 * share * width, "4 (rows named) D / d"
        ),
        Exchange(
            "their gradients", "all-to-all", data * model, size / data, "4 (rows named) D / d"
        ),
    ]


def touched_rows(config: Config, sizes: Sizes) -> float:
    """Most rows of the tables that a global batch names."""
    loss, tokens = config.loss, sizes.tokens
    of_item = 1 if config.vocabulary.kind == "catalogue" else config.vocabulary.hashes
    if sizes.num_tasks:
        return tokens * (of_item + sizes.item_values)
    group = loss.group if loss.kind == "group" else 1
    return tokens * (of_item * (2 + loss.negatives / group) + sizes.item_values)


def _blocks(config: Config, sizes: Sizes, data: int, model: int) -> list[Exchange]:
    """Activations of blocks whose heads are spread over `model`, for the tokens of one data shard."""
    m, width = config.model, 2 if config.model.compute_dtype == "bfloat16" else 4
    tokens = sizes.tokens / data
    columns = 2 * m.num_heads * (m.v_width + m.qk_width)
    passes = 3 if m.remat else 2
    sums = passes * (2 if m.swiglu_width else 1)
    return [
        Exchange(
            "sums over heads",
            "all-reduce",
            model,
            float(width * m.num_blocks * sums * tokens * m.width),
            f"{sums} s (T/d) D for each block",
        ),
        Exchange(
            "u, v, q, k to their heads",
            "all-to-all",
            model,
            float(width * m.num_blocks * passes * tokens * columns / model),
            f"{passes} s (T/d) (2HV + 2HA) / m for each block",
        ),
        Exchange(
            "their gradients back",
            "collective-permute",
            model,
            float(width * m.num_blocks * tokens * columns / 2 if model > 1 else 0),
            "s (T/d) (HV + HA) for each block",
        ),
    ]


def _parameters(state: Any, data: int) -> list[Exchange]:
    """Gradients of parameters that every data shard has, and of those that are spread over `data` but no tables."""
    whole = gathered = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        if is_table(path_name(path)):
            continue
        local = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if "data" in _axes(leaf.sharding.spec):
            gathered += local * data
        else:
            whole += local
    return [
        Exchange("gradients", "all-reduce", data, whole, "4 (parameters on every data shard)"),
        Exchange(
            "parameters", "all-gather", data, 2 * gathered, "2 x 4 (parameters spread over data)"
        ),
        Exchange(
            "their gradients", "reduce-scatter", data, gathered, "4 (parameters spread over data)"
        ),
    ]


def is_table(name: str) -> bool:
    """Whether a parameter path is that of a table that is looked up by id."""
    return "item_table" in name or "feature_table" in name


def _axes(spec: Any) -> set[str]:
    """Mesh axes in a PartitionSpec."""
    return {axis for part in spec for axis in ((part,) if isinstance(part, str) else part or ())}


def is_row_wise(config: Config) -> bool:
    """Whether a step reads and writes only those rows of the tables that its batch names."""
    return config.optimizer.table != "dense"
