"""Bytes that a training step needs of one device's memory, from the shapes alone.

State, batch and vocabulary are exact: they are given to the step. What the compiler adds to them
(activations, gradients, looked-up entries) is counted for a GPU, where kernels keep attention's
scores out of memory; `experiments/scale/plan_check.py` compares the sum with XLA's buffer
assignment for an H100. XLA on a CPU fuses and recomputes in ways that no short formula follows:
there the step is compiled, and `compiled` takes the rest from XLA.

T tokens of a device with padding, D width, HV and HA widths of its heads together, K negatives, X
entries of the item table on a device, n devices, s bytes of an activation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax

from gr_jax.config import Config, ConfigError
from gr_jax.models.embeddings import table_entries
from gr_jax.planning.collectives import entries_named, is_row_wise, is_table
from gr_jax.planning.sizes import Sizes
from gr_jax.training.sharding import path_name
from gr_jax.training.state import TrainState, local_bytes


@dataclass(frozen=True)
class Part:
    """A use of memory."""

    what: str
    bytes: int | float
    formula: str


def given(config: Config, sizes: Sizes, state: TrainState) -> tuple[Part, ...]:
    """The parts that a step is given on each device: exact for every model and device.

    Args:
      config: of a sequence model.
      sizes: of the run.
      state: `compiled_step.abstract_state`, placed on the mesh.
    """
    data = mesh_of(state).shape["data"]
    parts = [
        Part("parameters", local_bytes(state.params), "each array / its shards"),
        Part("optimizer state", local_bytes(state.opt_state), "each array / its shards"),
        Part("batch", batch_bytes(sizes) / data, "4 T for each field of a token"),
    ]
    if state.vocabulary is not None:
        size = local_bytes(state.vocabulary)
        parts.append(Part("vocabulary", size, "4 (k + 2 if admitted) for each item"))
    return tuple(parts)


def compiled(config: Config, sizes: Sizes, state: TrainState, peak: int) -> tuple[Part, ...]:
    """The same, and the rest of the `peak` bytes that XLA allocates for the compiled step."""
    parts = given(config, sizes, state)
    rest = peak - sum(part.bytes for part in parts)
    return *parts, Part("activations, gradients", rest, "XLA's buffer assignment")


def knows(config: Config) -> bool:
    """True if the formulas for a GPU hold for this kind of model."""
    return config.model.kind == "hstu" and not config.model.swiglu_width


def on_gpu(config: Config, sizes: Sizes, state: TrainState) -> tuple[Part, ...]:
    """All uses of one GPU's memory in a training step.

    Raises:
      ConfigError: a model that the formulas do not know.
    """
    if not knows(config):
        kind, swiglu = config.model.kind, config.model.swiglu_width
        raise ConfigError(
            f"model.kind={kind!r}, swiglu_width={swiglu}: the formulas know hstu without SwiGLU;"
            " --compile asks the compiler"
        )
    # The loss is done when the backward passes of the blocks begin.
    at_work = max(
        _loss(config, sizes, state), _block_at_work(config, sizes, state), key=lambda p: p.bytes
    )
    return (
        *given(config, sizes, state),
        *_vectors_of_all_items(config, sizes, state),
        _activations_kept(config, sizes, state),
        _entries_in_transit(config, sizes, state),
        at_work,
    )


def mesh_of(state: TrainState) -> jax.sharding.AbstractMesh:
    """The mesh on which the shapes of a state are placed."""
    return jax.tree.leaves(state)[0].sharding.mesh


def batch_bytes(sizes: Sizes) -> float:
    """Bytes of a global batch; see `data.batches.batch.Batch`."""
    fields = 5 + sizes.item_features + bool(sizes.num_actions)
    fields += 2 * sizes.num_tasks if sizes.num_tasks else 1
    fields += bool(sizes.user_features or sizes.max_series)
    return 4.0 * sizes.tokens * fields


# Activations


def kept_by_block(config: Config, model: int) -> tuple[float, float]:
    """Bytes of a token that a block keeps for its backward pass, and those with `remat`.

    Its input x; u and v as activated, the attended and the gated values; q and k: s (D + 4 HV +
    2 HA). The mask of dropout takes a byte for each gated value. With HV = HA = D that is 15 D in
    bfloat16 (the paper counts 14 D, section 3.3), and with `remat` the input alone, 2 D.
    `experiments/speed/memory.py` finds the same in programs for an H100.

    Args:
      config: of an HSTU.
      model: devices that share the heads.
    """
    m, size = config.model, _activation_size(config)
    heads_v, heads_a = (m.num_heads * width / model for width in (m.v_width, m.qk_width))
    mask = heads_v if m.dropout else 0.0
    return size * (m.width + 4 * heads_v + 2 * heads_a) + mask, float(size * m.width)


def _activations_kept(config: Config, sizes: Sizes, state: TrainState) -> Part:
    mesh, m = mesh_of(state), config.model
    whole, recomputed = kept_by_block(config, mesh.shape["model"])
    each = m.num_blocks * (recomputed if m.remat else whole)
    formula = f"{m.num_blocks} T {'s D' if m.remat else '(s (D + 4 HV + 2 HA) + HV)'}"
    if m.scan_blocks:  # the loop copies those of a block out of the stacked arrays
        each += whole - recomputed
        formula += " + T (s (4 HV + 2 HA) + HV)"
    return Part("activations kept", sizes.tokens / mesh.shape["data"] * each, formula)


def _block_at_work(config: Config, sizes: Sizes, state: TrainState) -> Part:
    """Gradients, the input embeddings in float32, and a block's backward pass.

    That holds the gradients of the block's output, of the gated and of the attended values, and
    with `remat` all that the block would have kept.
    """
    mesh, m = mesh_of(state), config.model
    whole, recomputed = kept_by_block(config, mesh.shape["model"])
    heads_v = m.num_heads * m.v_width / mesh.shape["model"]
    each = 4.0 * m.width + _activation_size(config) * (m.width + 2 * heads_v)
    formula = "gradients + T (4 D + s (D + 2 HV))"
    if m.remat:
        each += whole - recomputed
        formula += " + T (s (4 HV + 2 HA) + HV)"
    size = sizes.tokens / mesh.shape["data"] * each + _gradients(config, sizes, state)
    return Part("gradients, a block at work", size, formula)


def _activation_size(config: Config) -> int:
    return 2 if config.model.compute_dtype == "bfloat16" else 4


# Gradients and the loss


def _gradients(config: Config, sizes: Sizes, state: TrainState) -> float:
    """Bytes of the gradients of all parameters on one device."""
    dense = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        if not is_table(path_name(path)):
            dense += 4.0 * math.prod(leaf.sharding.shard_shape(leaf.shape))
    return dense + _table_gradients(config, sizes, state)


def _table_gradients(config: Config, sizes: Sizes, state: TrainState) -> float:
    """Bytes of the gradients of tables on one device.

    With a dense rule as large as the table. With a row-wise rule those of the entries that a batch
    names, their sums and the entries themselves.
    """
    total = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        if not is_table(path_name(path)):
            continue
        if is_row_wise(config):
            devices = mesh_of(state).size
            total += 12.0 * entries_named(config, sizes) * leaf.shape[-1] / devices
        else:
            total += 4.0 * math.prod(leaf.sharding.shard_shape(leaf.shape))
    return total


def _loss(config: Config, sizes: Sizes, state: TrainState) -> Part:
    """Gradients of tables, and the arrays of the loss.

    Of retrieval in float32: the last hidden states, their unit vectors and the entries of the
    labels (12 T D), beside the arrays of a chunk of tokens; then the gradient too (16 T D). A dense
    item table has two gradients, of labels and of scores, until they are summed.
    """
    mesh, width = mesh_of(state), config.model.width
    tokens = sizes.tokens / mesh.shape["data"]
    if sizes.num_tasks:
        size, formula = 12.0 * tokens * config.model.head_width, "12 T (head width)"
    else:
        chunk, formula = _chunk(config, sizes, mesh.size)
        size = max(16.0 * tokens * width, 12.0 * tokens * width + chunk)
        formula = f"max(16 T D, 12 T D + {formula})"
    tables = _table_gradients(config, sizes, state)
    if not sizes.num_tasks and not is_row_wise(config):
        tables *= 2
    return Part("gradients, loss", size + tables, f"gradients of tables + {formula}")


def _chunk(config: Config, sizes: Sizes, devices: int) -> tuple[float, str]:
    """Bytes of the logits of a chunk of tokens and of the entries that they need."""
    loss, width, entries = config.loss, config.model.width, table_entries(sizes.num_items, devices)
    if loss.kind == "full":
        return 4.0 * entries / devices * loss.chunk_tokens, "4 X (tokens of a chunk)"
    group = loss.group if loss.kind == "group" else 1
    chunk = max(1, loss.chunk_tokens * min(group, 4) // 4)
    size, formula = 16.0 * chunk / group * loss.negatives * width, "16 K D (chunk / group)"
    # `sampled_softmax` normalises the whole table where that is less than the negatives.
    if 4 * entries <= sizes.tokens // group * loss.negatives:
        size, formula = size + 8.0 * entries / devices * width, f"{formula} + 8 X D"
    return size, formula


# Entries of tables


def _vectors_of_all_items(config: Config, sizes: Sizes, state: TrainState) -> tuple[Part, ...]:
    """With hashes and a dense rule the vectors of all items are made, one hash at a time."""
    if state.vocabulary is None or is_row_wise(config):
        return ()
    devices = mesh_of(state).size
    entries = table_entries(sizes.num_items, devices) / devices
    size = 4.0 * (config.vocabulary.hashes + 1) * entries * config.model.width
    return (Part("vectors of all items", size, "4 (k + 1) D (items / n)"),)


def _entries_in_transit(config: Config, sizes: Sizes, state: TrainState) -> Part:
    """Entries that are looked up on other devices, and their gradients.

    The partitioner sums them over all devices for all tokens at once. Of a row-wise table every
    device receives those of the whole batch ("gather"), or only its share ("all_to_all"), which
    the gradients count already.
    """
    what, width = "entries in transit", config.model.width
    if mesh_of(state).size == 1 or (is_row_wise(config) and config.mesh.exchange == "all_to_all"):
        return Part(what, 0.0, "none: one device, or all_to_all")
    if is_row_wise(config):
        size = 8.0 * entries_named(config, sizes) * width
        return Part(what, size, "2 x 4 D (entries named by all devices)")
    return Part(what, 4.0 * sizes.tokens * width, "4 D (tokens of all devices)")
