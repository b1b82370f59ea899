"""Least time of a training step: arithmetic, memory traffic and links at their peaks (a roofline).

T tokens of a global batch with padding, D width, F = 2 H V + 2 H A, n devices, s bytes of an
activation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from gr_jax.config import Config
from gr_jax.hardware import Device
from gr_jax.models.flops import block_flops, train_flops
from gr_jax.planning.collectives import Exchange, is_row_wise, is_table
from gr_jax.planning.sizes import Sizes
from gr_jax.training.sharding import path_name
from gr_jax.training.state import TrainState


@dataclass(frozen=True)
class Term:
    """A share of a step's time."""

    what: str
    amount: float  # FLOPs or bytes of one device
    rate: float  # FLOP/s or bytes/s of its peak
    formula: str

    @property
    def seconds(self) -> float:
        """Time at the peak rate."""
        return self.amount / self.rate


@dataclass(frozen=True)
class Cost:
    """The time of a step on each device, term by term."""

    model_flops: float  # of the mathematics on real tokens, all devices together
    terms: tuple[Term, ...]  # compute, memory, then one for each group of collectives

    @property
    def seconds(self) -> float:
        """max(compute, memory) + links: these two overlap, communication waits for both."""
        compute, memory, *links = self.terms
        return max(compute.seconds, memory.seconds) + sum(term.seconds for term in links)

    @property
    def overlapped_seconds(self) -> float:
        """Everything overlaps: the longest term alone."""
        compute, memory, *links = self.terms
        return max(compute.seconds, memory.seconds, sum(term.seconds for term in links))

    def utilisation(self, devices: int) -> float:
        """MFU: FLOPs of the mathematics over the FLOPs that the devices could do in that time."""
        return self.model_flops / (self.seconds * devices * self.terms[0].rate)


def cost(
    config: Config,
    sizes: Sizes,
    state: TrainState,
    exchanges: Sequence[Exchange],
    device: Device,
    devices: int,
) -> Cost:
    """The roofline of a training step; `state` as of `compiled_step.abstract_state`."""
    batches = sizes.users_per_batch / len(sizes.lengths)
    model_flops = train_flops(config, sizes.lengths, num_items=sizes.num_items) * batches
    moved = state_traffic(config, state) + activation_traffic(config, sizes) / devices
    compute = Term(
        "compute",
        executed_flops(config, sizes) / devices,
        device.flops(config.model.compute_dtype),
        "(forward + backward + recomputation) / n",
    )
    memory = Term(
        "memory",
        moved,
        device.bandwidth,
        "32 for each parameter under AdamW + activations and loss, written and read",
    )
    sent, formula = _by_group(exchanges), "bytes sent / (NVLink within a node, else network)"
    links = [
        Term(f"links, {kind}", wire, device.wire(group), formula)
        for (kind, group), wire in sent.items()
    ]
    return Cost(model_flops, (compute, memory, *links))


def _by_group(exchanges: Sequence[Exchange]) -> dict[tuple[str, int], float]:
    """Bytes that a device sends, by kind of collective and number of devices in it."""
    sent: dict[tuple[str, int], float] = {}
    for x in exchanges:
        sent[x.kind, x.devices] = sent.get((x.kind, x.devices), 0.0) + x.wire
    return sent


def executed_flops(config: Config, sizes: Sizes) -> float:
    """FLOPs computed for a global batch, with padding in linear layers and recomputed products.

    The backward pass of a product costs two products; that of the first projection makes its
    product once more (`pallas_kernels/elementwise.py`), that of attention the scores (five products
    for the forward pass's two), that of SwiGLU its hidden values; `remat` adds a forward pass.
    Attention counts real pairs, also those beyond `model.window`: kernels skip blocks without any,
    XLA's on a CPU does not.
    """
    model, tokens = config.model, sizes.tokens
    per_token, per_pair = block_flops(model)
    linear, attention = 3.0 * per_token, 3.0 * per_pair
    linear += 4.0 * model.width * model.swiglu_width
    if model.kind == "hstu":
        heads_a, heads_v = model.num_heads * model.qk_width, model.num_heads * model.v_width
        linear += 4 * model.width * (heads_a + heads_v)
        attention = 2.0 * (heads_a + heads_v) + 2.0 * (3 * heads_a + 2 * heads_v)
    if model.remat:
        linear, attention = linear + per_token, attention + per_pair
    blocks = model.num_blocks * (tokens * linear + sizes.pairs * attention)
    return blocks + 3.0 * tokens * output_flops(config, sizes)


def output_flops(config: Config, sizes: Sizes) -> float:
    """FLOPs of a token's output in the forward pass: logits of items, or of actions."""
    model, loss = config.model, config.loss
    if sizes.num_tasks:
        return 2.0 * model.head_width * (model.width + sizes.num_tasks)
    return 2.0 * model.width * (sizes.num_items if loss.kind == "full" else loss.negatives + 1)


def state_traffic(config: Config, state: TrainState) -> float:
    """Bytes of parameters, gradients and moments that one device reads and writes in a step.

    AdamW reads parameter, gradient and both moments, and writes all but the gradient, which the
    backward pass wrote: eight passes over four bytes. A row-wise table is not read as a whole.
    """
    held = {
        path_name(path): math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
    }
    dense = sum(size for name, size in held.items() if not (is_table(name) and is_row_wise(config)))
    return 8.0 * dense


def activation_traffic(config: Config, sizes: Sizes) -> float:
    """Bytes of activations and of the loss that all devices read and write for a global batch.

    Forward pass of a block, for a token: x is read twice and written, its norm written and read
    (5 D); u, v, q, k are written, activated and read (3 F); attention and gate write and read
    theirs (5 H V); SwiGLU moves 5 D and six times its width. The backward pass moves twice that,
    `remat` once more. Scores stay on the chip. Entries of tables are read, and their gradients
    written and read.
    """
    model, tokens = config.model, sizes.tokens
    size = 2 if model.compute_dtype == "bfloat16" else 4
    heads_a, heads_v = model.num_heads * model.qk_width, model.num_heads * model.v_width
    block = 5 * model.width + 6 * (heads_a + heads_v) + 5 * heads_v
    block += (5 * model.width + 6 * model.swiglu_width) * bool(model.swiglu_width)
    if model.kind == "sasrec":
        block = 12 * model.width + 4 * model.ffn_width
    blocks = (4 if model.remat else 3) * size * tokens * model.num_blocks * block
    entries = 16.0 * model.width * tokens * (1 + sizes.item_features)
    return blocks + entries + _loss_traffic(config, sizes)


def _loss_traffic(config: Config, sizes: Sizes) -> float:
    """Bytes that the outputs and the loss of a global batch move."""
    model, loss, tokens = config.model, config.loss, sizes.tokens
    if sizes.num_tasks:
        return 12.0 * tokens * model.head_width
    if loss.kind == "full":
        # logits and exponentials, twice; the table once for each chunk of tokens
        chunks = -(-tokens // loss.chunk_tokens)
        return sizes.num_items * (16.0 * tokens + 12.0 * chunks * model.width)
    group = loss.group if loss.kind == "group" else 1  # tokens that share their negatives
    return 24.0 * tokens * loss.negatives * (model.width / group + 1)
