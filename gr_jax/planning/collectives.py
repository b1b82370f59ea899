"""Bytes that devices exchange in a training step, by purpose, as XLA's partitioner moves them.

T tokens of a global batch, D width, d and m devices along `data` and `model`, n = d m, s bytes of
an activation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
from jax.sharding import PartitionSpec

from gr_jax.config import Config
from gr_jax.planning.hlo import wire_bytes
from gr_jax.planning.sizes import Sizes
from gr_jax.training.sharding import path_name
from gr_jax.training.state import TrainState


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


def exchanges(
    config: Config, sizes: Sizes, state: TrainState, *, platform: str
) -> tuple[Exchange, ...]:
    """All traffic of a training step of an HSTU.

    Args:
      config: of the run.
      sizes: of the run.
      state: `compiled_step.abstract_state`, placed on the mesh.
      platform: "cpu", or "gpu", where a sum that is then divided is a reduce-scatter.
    """
    mesh = jax.tree.leaves(state)[0].sharding.mesh
    data, model = mesh.shape["data"], mesh.shape["model"]
    if is_row_wise(config):
        lookups = _row_wise(config, sizes, data, model)
    else:
        total = "all-reduce" if platform == "cpu" else "reduce-scatter"
        lookups = _lookups(config, sizes, data, model, total)
    found = [*lookups, *_blocks(config, sizes, data, model), *_parameters(state, data)]
    return tuple(x for x in found if x.devices > 1 and x.payload)


def _lookups(config: Config, sizes: Sizes, data: int, model: int, total: str) -> list[Exchange]:
    """Entries of tables, which lie on all devices: ids to all along `data`, entries back.

    total: the collective that sums where the partitioner looks entries up.
    """
    width, loss, tokens = config.model.width, config.loss, sizes.tokens
    devices = data * model
    found = [("input entries", tokens, "T", 1)]
    if sizes.item_features:
        found.append(("feature entries of items", tokens * sizes.item_features, "T F", 1))
    if sizes.user_features or sizes.max_series:
        found.append(("feature entries of users", tokens, "T", 1))
    made = []
    if not sizes.num_tasks and loss.kind == "full":
        made += [
            Exchange("vectors to score", "all-gather", devices, 8.0 * tokens * width, "2 x 4 T D"),
            Exchange("their gradients", total, devices, 4.0 * tokens * width, "4 T D"),
            Exchange("label entries, ids", "all-gather", devices, 4.0 * tokens, "4 T"),
            Exchange("label entries", total, devices, 4.0 * tokens * width, "4 T D"),
            Exchange(
                "label entries, gradients", "all-gather", devices, 4.0 * tokens * width, "4 T D"
            ),
        ]
    elif not sizes.num_tasks:
        group = loss.group if loss.kind == "group" else 1
        found.append(("label entries", tokens, "T", 2))
        found.append(("negative entries", tokens // group * loss.negatives, f"T K / {group}", 2))
    for what, entries, count, uses in found:
        size = 4.0 * entries * width
        made += [
            Exchange(
                f"{what}, ids", "all-gather", data, 4.0 * uses * entries, f"{uses} x 4 {count}"
            ),
            Exchange(what, "reduce-scatter", data, size, f"4 {count} D"),
            Exchange(f"{what} over model", "all-reduce", model, size / data, f"4 {count} D / d"),
            Exchange(f"{what}, gradients", "all-gather", devices, size, f"4 {count} D"),
        ]
    return made


def _row_wise(config: Config, sizes: Sizes, data: int, model: int) -> list[Exchange]:
    """Entries of row-wise tables: fetched once in a step, their gradients delivered once."""
    named, width = entries_named(config, sizes), config.model.width
    ids, size, devices = 8.0 * named, 4.0 * named * width, data
    kinds, share, count = ("all-gather", "reduce-scatter", "all-gather"), 1, "(entries named)"
    if config.mesh.exchange == "all_to_all":
        kinds, share, count = ("all-to-all",) * 3, data, "(entries named) / d"
        devices = data * model
    over_model = Exchange(
        "entries over model", "all-reduce", model, size / data, "4 D (entries named) / d"
    )
    return [
        Exchange("entries, ids", kinds[0], devices, ids / share, f"2 x 4 {count}"),
        Exchange("entries", kinds[1], devices, size / share, f"4 D {count}"),
        over_model,
        Exchange("their gradients", kinds[2], devices, size / share, f"4 D {count}"),
    ]


def entries_named(config: Config, sizes: Sizes) -> float:
    """Max entries of the tables that a global batch names."""
    loss, tokens = config.loss, sizes.tokens
    of_item = 1 if config.vocabulary.kind == "catalogue" else config.vocabulary.hashes
    if sizes.num_tasks:
        return tokens * (of_item + sizes.item_features)
    group = loss.group if loss.kind == "group" else 1
    return tokens * (of_item * (2 + loss.negatives / group) + sizes.item_features)


def _blocks(config: Config, sizes: Sizes, data: int, model: int) -> list[Exchange]:
    """Activations of blocks whose heads are spread over `model`, for one data shard's tokens."""
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


def _parameters(state: TrainState, data: int) -> list[Exchange]:
    """Gradients of parameters that every data shard has, and of others spread over `data`."""
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
    """True for the parameter path of a table that is looked up by id."""
    return "item_table" in name or "feature_table" in name


def _axes(spec: PartitionSpec) -> set[str]:
    """Mesh axes in a PartitionSpec."""
    return {axis for part in spec for axis in ((part,) if isinstance(part, str) else part or ())}


def is_row_wise(config: Config) -> bool:
    """True if a step reads and writes only those entries of tables that its batch names."""
    return config.optimizer.table != "dense"
