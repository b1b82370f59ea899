"""What a training step needs of one device's memory, from the shapes alone.

State and batch are exact: they are what the step is given. What the compiler adds (gradients, activations, copies)
follows from which backend it is: the numbers below say what its buffer assignment was measured to hold, in units of a
formula; `experiments/scale/plan_check.py` compares the two on other configs.

T tokens of a device with padding, D width, X rows of the item table on a device; of XLA's attention, W keys in the
windows of all chunks of queries, S pairs of a query and a key of its window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from gr_jax.config import Config, ConfigError
from gr_jax.models.embeddings import table_rows
from gr_jax.planning.collectives import is_row_wise, is_table, touched_rows
from gr_jax.planning.sizes import Sizes
from gr_jax.training.sharding import path_name
from pallas_kernels.xla import CHUNK, MAX_UNROLLED


@dataclass(frozen=True)
class Part:
    """A use of memory."""

    what: str
    bytes: float
    formula: str


class Held(NamedTuple):
    """Arrays in memory, as multiples of their sizes."""

    width: float  # [T, D]
    values: float  # [T, H V]
    keys: float  # [T, H A]
    window_values: float = 0.0  # [W, H V]
    window_keys: float = 0.0  # [W, H A]
    scores: float = 0.0  # [S, H] in float32
    pairs: float = 0.0  # [S] in float32


class Backend(NamedTuple):
    """What a compiler keeps of each block until its backward pass, and holds besides at the peak."""

    block: Held
    rest: Held
    bfloat16: float  # bytes of an element when blocks compute in bfloat16; XLA on a CPU turns much of it to float32
    dropout: float = 1.0  # [T, H V] of `block` that are not there without dropout


# Fitted to XLA's buffer assignments. XLA on a CPU finds the forward pass again in the backward pass and keeps its
# results, unless blocks are scanned, so there `remat` saves nothing, and bfloat16 little; on a GPU both do.
CPU = Backend(Held(1.4, 9.7, 1.3, 0, 1.35, 3.1, 1.55), Held(11.5, 0, 0.8, 0, 1.5, 0, 0.7), 4.0)
CPU_SCAN = Backend(Held(0.1, 2.5, 0.2, 1.8, 0.7), Held(7.7, 3.7, 12.6, 0, 0, 2.8, 3.6), 4.0)
CPU_SCAN_REMAT = Backend(Held(0.1, 0, 0), Held(10.8, 10.7, 4.9, 0, 0, 3.2, 2.1), 4.0)
# Rows beyond 512 tokens: attention keeps padded keys and values besides, and has one chunk of pairs at a time.
LONG = Backend(Held(4.0, 8.0, 4.6, 2.4), Held(4.1, 0.8, 2.8, 0, 0, 4.6), 3.3)
LONG_SCAN = Backend(Held(1.2, 1.9, 5.0, 1.4, 0.9), Held(1.0, 7.5, 0, 0, 0, 8.9, 1.65), 4.0)
LONG_SCAN_REMAT = Backend(Held(0.25, 0, 0, 0.6), Held(8.3, 3.5, 1.8, 5.4, 1.0, 8.5, 2.3), 2.8)
# GPU, each block: x; u, v, the attended, the gated, and the mask of dropout in a byte; q and k.
GPU = Backend(Held(1.0, 4.5, 2.0), Held(6.3, 0.5, 0.4), 2, 0.5)
GPU_REMAT = Backend(Held(1.0, 0, 0), Held(6.3, 5.0, 2.3), 2)
SMALL = 1.1  # on a CPU, of batches under 4096 tokens: XLA fuses less of them
INPUT_DROPOUT = 1.0  # [T, D] of `rest` that are not there without input dropout


def backend(config: Config, platform: str) -> Backend:
    """The numbers that hold for a training step of `config` on a platform, `cpu` or `gpu`."""
    model = config.model
    if platform == "gpu":
        return GPU_REMAT if model.remat else GPU
    plain, scan, remat = CPU, CPU_SCAN, CPU_SCAN_REMAT
    if config.data.row_length > CHUNK * MAX_UNROLLED:
        plain, scan, remat = LONG, LONG_SCAN, LONG_SCAN_REMAT
    return plain if not model.scan_blocks else remat if model.remat else scan


def knows(config: Config) -> bool:
    """Whether the formulas hold for this kind of model."""
    return config.model.kind == "hstu" and not config.model.swiglu_width


def memory(config: Config, sizes: Sizes, state: Any, *, platform: str) -> tuple[Part, ...]:
    """The uses of one device's memory in a training step.

    Args:
      config: of a sequence model.
      sizes: of the run.
      state: `compiled.abstract_state`, placed on the mesh.
      platform: cpu or gpu: attention there is XLA's or a kernel's.

    Raises:
      ConfigError: a model that the formulas do not know.
    """
    if not knows(config):
        known = "the formulas know hstu without SwiGLU; --compile asks the compiler"
        raise ConfigError(
            f"model.kind={config.model.kind!r}, swiglu_width={config.model.swiglu_width}: {known}"
        )
    mesh = jax.tree.leaves(state)[0].sharding.mesh
    tokens = sizes.tokens / mesh.shape["data"]
    kept, kept_formula = _activations(
        config, sizes, tokens, mesh.shape["model"], platform, kept=True
    )
    return (
        Part("parameters", local_bytes(state.params), "each array / its shards"),
        Part("optimizer state", local_bytes(state.opt_state), "each array / its shards"),
        Part("batch", batch_bytes(sizes) / mesh.shape["data"], "4 T for each field of a token"),
        *_vocabulary(config, sizes, state, mesh.size),
        Part("activations kept", kept, kept_formula),
        Part("rows on their way", *_rows_on_their_way(config, sizes, mesh.size, platform)),
        max(  # the loss is done when the blocks' backward passes begin
            _loss(config, sizes, state, mesh.size, platform),
            _block_at_work(config, sizes, state, tokens, platform),
            key=lambda part: part.bytes,
        ),
    )


def _vocabulary(config: Config, sizes: Sizes, state: Any, devices: int) -> tuple[Part, ...]:
    """The map from items to rows, on every device; with a dense rule also the vectors of all items, one hash at a time.

    Measured on a CPU: as many arrays of their size as hashes, and one.
    """
    if state.vocabulary is None:
        return ()
    size, formula = local_bytes(state.vocabulary), "4 (k + 2 if admitted) X"
    if config.optimizer.table == "dense":
        size += (
            4.0
            * (config.vocabulary.hashes + 1)
            * table_rows(sizes.num_items)
            / devices
            * config.model.width
        )
        formula += " + 4 (k + 1) X D"
    return (Part("vocabulary", size, formula),)


def _rows_on_their_way(
    config: Config, sizes: Sizes, devices: int, platform: str
) -> tuple[float, str]:
    """Rows that are looked up on other devices, and their gradients.

    The partitioner sums them over all devices for all tokens at once; of a row-wise table every device hears those of
    the whole batch ("gather") or its share only, which the gradients count already.
    """
    if devices == 1 or (is_row_wise(config) and config.mesh.exchange == "all_to_all"):
        return 0.0, "none: one device, or all_to_all"
    if is_row_wise(config):
        return 8.0 * touched_rows(
            config, sizes
        ) * config.model.width, "2 x 4 D (rows named by all devices)"
    arrays = 1.5  # fitted to one program for GPUs
    if platform == "cpu":
        arrays = 0.3 if config.loss.kind == "full" and not sizes.num_tasks else 2.3
    return (
        4.0 * arrays * sizes.tokens * config.model.width,
        f"{arrays:g} x 4 D (tokens of all devices)",
    )


def local_bytes(tree: Any) -> float:
    """Bytes of the shards of `tree` on one device."""
    return float(
        sum(
            math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
            for a in jax.tree.leaves(tree)
        )
    )


def batch_bytes(sizes: Sizes) -> float:
    """Bytes of a global batch; see `data.batch.Batch`."""
    fields = (
        5
        + (2 * sizes.num_tasks if sizes.num_tasks else 1)
        + bool(sizes.num_actions)
        + sizes.item_values
    )
    fields += bool(sizes.contexts or sizes.max_series)
    return 4.0 * sizes.tokens * fields


def _gradients(config: Config, sizes: Sizes, state: Any) -> tuple[float, float]:
    """Bytes of the gradients on one device: of dense parameters, and of tables.

    That of a table with a dense rule is as large as the table; with a row-wise rule that of the rows a batch names.
    """
    dense = tables = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        size = 4.0 * math.prod(leaf.sharding.shard_shape(leaf.shape))
        if not is_table(path_name(path)):
            dense += size
        elif is_row_wise(config):
            tables += 12.0 * touched_rows(config, sizes) * leaf.shape[-1] / leaf.sharding.mesh.size
        else:
            tables += size
    return dense, tables


def window_sizes(config: Config, rows: float) -> tuple[float, float]:
    """Keys in the windows of XLA's attention, and pairs of a query and a key of its window.

    Of rows beyond 512 tokens: keys of the padded copy that the later chunks cut their windows from,
    pairs of a chunk. `model.window` makes both smaller, which is not counted.
    """
    length, back = config.data.row_length, config.data.max_length - 1
    chunks = -(-length // CHUNK)
    if chunks <= MAX_UNROLLED:
        starts = range(0, length, CHUNK)
        keys = sum(min(low + CHUNK, length) - max(0, low - back) for low in starts)
        return rows * keys, rows * CHUNK * keys
    # chunks whose windows begin with the row, where these are most of them
    near = min(chunks, back // CHUNK + 1)
    near = near if 2 * near > chunks else 0
    if near == chunks:
        return 0.0, rows * CHUNK * length
    keys = (
        chunks * CHUNK + back + near * CHUNK
    )  # those of the near chunks are not cut from the copy
    return rows * keys, rows * CHUNK * max(near * CHUNK, back + CHUNK)


def _activations(
    config: Config, sizes: Sizes, tokens: float, model: int, platform: str, *, kept: bool
) -> tuple[float, str]:
    m, numbers = config.model, backend(config, platform)
    held = numbers.block if kept else numbers.rest
    if kept and held.values and not m.dropout:
        held = held._replace(values=held.values - numbers.dropout)
    if not kept and not m.input_dropout:
        held = held._replace(width=held.width - INPUT_DROPOUT)
    size = 4 if m.compute_dtype == "float32" else numbers.bfloat16
    heads_v, heads_a, heads = (m.num_heads * width / model for width in (m.v_width, m.qk_width, 1))
    keys, pairs = window_sizes(config, tokens / config.data.row_length)
    factor = SMALL if platform == "cpu" and tokens < 4096 else 1.0
    each = factor * size * (
        tokens * (held.width * m.width + held.values * heads_v + held.keys * heads_a)
        + keys * (held.window_values * heads_v + held.window_keys * heads_a)
    ) + factor * 4 * pairs * (held.scores * heads + held.pairs)
    terms = [
        (held.width, "T D"),
        (held.values, "T HV"),
        (held.keys, "T HA"),
        (held.window_values, "W HV"),
    ]
    terms += [(held.window_keys, "W HA")]
    formula = f"{size:g} ({' + '.join(f'{n:g} {what}' for n, what in terms if n)})"
    if held.scores:
        formula += f" + 4 S ({held.scores:g} H + {held.pairs:g})"
    formula = formula if factor == 1 else f"{factor:g} ({formula})"
    return (each * m.num_blocks, f"{m.num_blocks} x {formula}") if kept else (each, formula)


def _block_at_work(config: Config, sizes: Sizes, state: Any, tokens: float, platform: str) -> Part:
    model = jax.tree.leaves(state)[0].sharding.mesh.shape["model"]
    size, formula = _activations(config, sizes, tokens, model, platform, kept=False)
    dense, tables = _gradients(config, sizes, state)
    return Part(
        "gradients, a block at work",
        size + dense + tables,
        f"4 (dense parameters) + {_TABLES} + {formula}",
    )


def _loss(config: Config, sizes: Sizes, state: Any, devices: int, platform: str) -> Part:
    """Gradients, and what the loss has in memory besides: the logits of a chunk of tokens, the rows they need."""
    loss, width = config.loss, config.model.width
    _, tables = _gradients(config, sizes, state)
    if sizes.num_tasks:
        size, formula = (
            12.0 * sizes.tokens / devices * config.model.head_width,
            "12 (T/d) (head width)",
        )
    elif loss.kind == "full":
        rows = table_rows(sizes.num_items) / devices
        size, formula = (
            4.0 * rows * (loss.chunk_tokens + 3.4 * width),
            "4 X (tokens of a chunk + 3.4 D)",
        )
    else:
        group = loss.group if loss.kind == "group" else 1
        chunk = max(1, loss.chunk_tokens * min(group, 4) // 4)
        size, formula = (
            16.0 * chunk / group * loss.negatives * width,
            "16 (tokens of a chunk / group) K D",
        )
        rows = table_rows(sizes.num_items)
        if (
            4 * rows <= sizes.tokens // group * loss.negatives
        ):  # where `sampled_softmax` normalises the whole table
            size, formula = size + 8.0 * rows / devices * width, f"{formula} + 8 X D"
    if (
        not sizes.num_tasks
    ):  # the last hidden states, unit vectors, rows of labels, and the gradients of these
        data = jax.tree.leaves(state)[0].sharding.mesh.shape["data"]
        each = 20 if platform == "cpu" else 10
        size, formula = size + each * sizes.tokens / data * width, f"{formula} + {each} T D"
    return Part("gradients, loss", tables + size, f"{_TABLES} + {formula}")


_TABLES = "4 X D (or 12 D (rows named) / n if row-wise)"
