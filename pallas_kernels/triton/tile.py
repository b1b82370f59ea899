"""Shared parts of the Triton kernels: the launch, loads, the mask and the bias of a tile, SiLU.

Inside a kernel, arrays are tiles with sizes that are powers of two. `start` is the row index of a
tile's first token.
"""

from __future__ import annotations

import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.arguments import ArrayOrRef, Options
from pallas_kernels.block_sizes import Blocks
from pallas_kernels.masks import time_bucket
from pallas_kernels.visible_keys import VisibleKeys, key_block_ranges, longest_first

# jax warns when it lowers such a kernel, far from the call. When the backend goes, jax-triton
# stays.
warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)


class Static(NamedTuple):
    """Facts that are known when a kernel is compiled."""

    scale: float
    max_length: int
    blocks: Blocks
    interpret: bool
    exact: bool  # float32 products in float32, else in tf32


class Tokens(NamedTuple):
    """Facts about the tokens: int32 [R, L] outside, references or the slice of a tile inside.

    first, end, position and target_position as in `VisibleKeys`; times as in `hstu_attention`; None
    where not needed.
    """

    first: ArrayOrRef
    end: ArrayOrRef
    position: ArrayOrRef
    target_position: ArrayOrRef  # only that it is there counts: then some queries are targets
    query_times: ArrayOrRef
    key_times: ArrayOrRef
    index: ArrayOrRef = None  # row index of the token, only inside


class Tables(NamedTuple):
    """The bias tables in float32, or None."""

    position: ArrayOrRef
    time: ArrayOrRef


class Work(NamedTuple):
    """The blocks of a kernel's programs.

    Attributes:
      order: r * n + block of all blocks by falling work.
      ranges: the blocks that each visits, [R, Q, 4] of keys or [R, K, 2] of queries.
    """

    order: ArrayOrRef
    ranges: ArrayOrRef


class Inputs(NamedTuple):
    """The arrays that the kernels read; d_out, the gradient of the output, in a backward pass."""

    tokens: Tokens
    tables: Tables
    q: ArrayOrRef
    k: ArrayOrRef
    v: ArrayOrRef
    d_out: ArrayOrRef = None


def static(options: Options, blocks: Blocks) -> Static:
    """The compile-time facts of a call."""
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    exact = precision in ("highest", "float32")
    return Static(options.scale, options.max_length, blocks, options.interpret, exact)


def launch(kernel, args, outputs, programs: int, blocks: Blocks, interpret: bool, name: str):
    """The outputs of `programs` runs of kernel(*args, *outputs)."""
    params = plt.CompilerParams(num_warps=blocks.num_warps, num_stages=blocks.num_stages)
    call = pl.pallas_call(
        kernel,
        grid=(programs,),
        out_shape=outputs,
        compiler_params=params,
        interpret=interpret,
        name=name,
    )
    return call(*args)


def query_programs(tokens: Tokens, blocks: Blocks) -> Work:
    """The blocks of queries, and the key blocks that each visits."""
    ranges = key_block_ranges(VisibleKeys(*tokens[:4]), blocks.query_block, blocks.key_block)
    visits = ranges[..., 1] - ranges[..., 0] + ranges[..., 3] - ranges[..., 2]
    return Work(longest_first(visits), ranges)


def program_block(work: Work, heads: int):
    """Row, block and head of this program; the heads of a block run next to one another."""
    program, blocks_in_row = pl.program_id(0), work.ranges.shape[1]
    block = work.order[program // heads]
    return block // blocks_in_row, block % blocks_in_row, program % heads


def for_key_blocks(ranges, row, block, refs: Tokens, visit, carry):
    """The carry after visit(key block, carry) of all key blocks that a block of queries sees."""
    a, b = ranges[row, block, 0], ranges[row, block, 1]
    if refs.target_position is None:  # then the second range is empty
        return jax.lax.fori_loop(a, b, visit, carry)
    c, d = ranges[row, block, 2], ranges[row, block, 3]
    step = lambda n, carry: visit(n + jnp.where(n >= b, c - b, 0), carry)
    return jax.lax.fori_loop(a, b + d - c, step, carry)


def lane_width(width: int) -> int:
    """Size of the last axis of a tile of vectors: a power of two, enough for a matrix product."""
    return max(16, pl.next_power_of_2(width))


def load_tokens(refs: Tokens, row, start, size: int, axis: int) -> Tokens:
    """Facts about `size` tokens, along `axis` of a tile of pairs. Beyond the row is padding."""
    length = refs.first.shape[1]
    index = start + jnp.arange(size)
    spread = lambda x: x[:, None] if axis == 0 else x[None, :]
    beyond = Tokens(length, 0, 0, None, 0, 0)

    def load(ref, other):
        if ref is None or other is None:
            return None
        at = ref.at[row, pl.ds(start, size)]
        if length % size == 0:
            return spread(plt.load(at))
        return spread(plt.load(at, mask=index < length, other=other))

    return Tokens(*(load(*x) for x in zip(refs, beyond, strict=True)))._replace(index=spread(index))


def real_tokens(refs: Tokens, row, start, size: int):
    """True for those of `size` tokens that are no padding, [size]."""
    index, length = start + jnp.arange(size), refs.first.shape[1]
    mask = None if length % size == 0 else index < length
    at = refs.first.at[row, pl.ds(start, size)]
    return plt.load(at, mask=mask, other=None if mask is None else length) < length


def load_vectors(ref, row, start, size: int, head, real=None):
    """The vectors of `size` tokens of a [R, L, H, width] reference, [size, lane_width(width)].

    Lanes beyond the width and tokens beyond the row are 0, and where `real` is given also padding.
    It is needed for what the weights of a tile are multiplied with: padding may hold NaN, and
    0 * NaN is NaN.
    """
    if real is None and ref.shape[1] % size:
        real = start + jnp.arange(size) < ref.shape[1]
    mask = _vector_mask(real, size, ref.shape[3])
    at = _vectors(ref, row, start, size, head)
    return plt.load(at) if mask is None else plt.load(at, mask=mask, other=0.0)


def store_vectors(ref, row, start, head, values) -> None:
    """Write values [size, lane_width(width)] to the vectors of those tokens that lie in the row."""
    size, length = values.shape[0], ref.shape[1]
    inside = start + jnp.arange(size) < length if length % size else None
    mask = _vector_mask(inside, size, ref.shape[3])
    plt.store(_vectors(ref, row, start, size, head), values.astype(ref.dtype), mask=mask)


def store_sums(ref, row, start, head, values) -> None:
    """Write values [size] of those tokens that lie in the row to a [R, H, L] reference."""
    size, length = values.shape[0], ref.shape[2]
    inside = start + jnp.arange(size) < length if length % size else None
    plt.store(ref.at[row, head, pl.ds(start, size)], values, mask=inside)


def _vectors(ref, row, start, size, head):
    # The int32 makes the slice dynamic: jax 0.12 refuses a static one that is wider than the array.
    return ref.at[row, pl.ds(start, size), head, pl.ds(jnp.int32(0), lane_width(ref.shape[3]))]


def _vector_mask(tokens, size: int, width: int):
    lanes = lane_width(width)
    masks = [] if tokens is None else [tokens[:, None]]
    if lanes != width:
        masks.append((jnp.arange(lanes) < width)[None, :])
    masks = [jnp.broadcast_to(mask, (size, lanes)) for mask in masks]
    return functools.reduce(jnp.logical_and, masks) if masks else None


def dot(a, b, static: Static):
    """The matrix product in float32."""
    precision = jax.lax.Precision.HIGHEST if static.exact else jax.lax.Precision.DEFAULT
    return plt.dot(a, b, precision=precision)


def sigmoid(x, static: Static, dtype):
    """Sigmoid of float32 x: by the tanh instruction, of 11 bits, where the result has fewer."""
    if static.interpret or dtype == jnp.float32:
        return jax.nn.sigmoid(x)
    return 0.5 * plt.approx_tanh(0.5 * x) + 0.5


def score_gradient(scores, d_weights, static: Static, dtype):
    """Weights times N, and the gradient of the scores times N, of pairs that all are visible."""
    gate = sigmoid(scores, static, dtype)
    weights = scores * gate
    return weights, d_weights * (gate + weights * (1 - gate))


def visible_pairs(query: Tokens, key: Tokens, refs: Tokens):
    """True where the query sees the key."""
    sees = (key.index >= query.first) & (key.index < query.end)
    if refs.target_position is not None:
        sees |= (key.index == query.index) & (query.first < refs.first.shape[1])
    return sees


def buckets(query: Tokens, key: Tokens, num_buckets: int):
    """The entry of the time table of each pair."""
    return jnp.minimum(time_bucket(query.query_times - key.key_times), num_buckets - 1)


def add_bias(scores, query: Tokens, key: Tokens, tables: Tables):
    """`scores` plus the position bias and the time bias of the pairs, gathered from the tables."""
    if tables.position is not None:
        indices = query.position is None
        distance = query.index - key.index if indices else query.position - key.position
        scores += plt.load(tables.position.at[jnp.clip(distance, 0, tables.position.shape[0] - 1)])
    if tables.time is not None:
        scores += plt.load(tables.time.at[buckets(query, key, tables.time.shape[0])])
    return scores


def of_targets(query: Tokens):
    """True where the query is a target.

    Then the distance of a visible pair depends on the key only. For all other visible pairs it is
    that of the indices; see table_gradients.py.
    """
    return query.end <= query.index
