"""HSTU attention of new tokens against the cached keys and values of a sequence, for inference.

Letters: R rows, one sequence each; L new tokens of a row; S cached tokens that a row has room for;
H heads; A width of queries and keys; V width of values.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.arguments import Bias, Options
from pallas_kernels.masks import time_bucket

TINY = 8  # queries of a row up to which a CPU computes all heads at once


class Queries(NamedTuple):
    """Facts about the queries that decide what they see: int32 [R, L] or [R, 1].

    Attributes:
      starts, ends: query i sees the cached tokens starts_i <= j < ends_i; starts None = from 0 on.
      positions: of the queries; None without position table.
    """

    starts: Int[Array, "R #L"] | None
    ends: Int[Array, "R #L"]
    positions: Int[Array, "R #L"] | None


def hstu_cached_attention(
    q: Float[Array, "R L H A"],
    k: Float[Array, "R H S A"],
    v: Float[Array, "R H S V"],
    ends: Int[Array, "R #L"],
    *,
    max_length: int,
    scale: float = 1.0,
    position_table: Float[Array, " P"] | None = None,
    time_table: Float[Array, " buckets"] | None = None,
    positions: Int[Array, "R #L"] | None = None,
    query_times: Int[Array, "R #L"] | None = None,
    key_times: Int[Array, "R S"] | None = None,
    window: int | None = None,
    own_k: Float[Array, "R L H A"] | None = None,
    own_v: Float[Array, "R L H V"] | None = None,
    own_times: Int[Array, "R #L"] | None = None,
    implementation: str | None = None,
    interpret: bool = False,
) -> Float[Array, "R L H V"]:
    """out_i = sum_{j < ends_i} SiLU(scale * q_i.k_j + bias_ij) / N * v_j, plus that of its own key.

    It is `hstu_attention` for the last tokens of a sequence whose other keys and values are stored.
    Tokens that are appended write theirs into the cache first, and see j < ends_i = their
    position + 1. Candidates see the history, ends_i = its length, and themselves through `own_k`
    and `own_v`, never one another: however they are divided into calls, the result is the same. Not
    differentiable.

    Args:
      q: float32 or bfloat16; the result has its dtype.
      k, v: float32 or bfloat16, by head; finite, also where no query looks. Sums and bias are
        float32.
      ends, positions, query_times, own_times: [R, L], or [R, 1] where all tokens of a row share
        them: then the bias is looked up once for a row and not for each of its tokens.
      max_length: N, the fixed normaliser, the one of the forward that made the cache.
      position_table: bias by positions_i - j, clipped to [0, P - 1]; the cached token j has
        position j.
      time_table: bias by `time_bucket(query_times_i - key_times_j)`, clipped to the table; times
        are int32 seconds.
      window: longest positions_i - j that a token sees; None = no limit.
      implementation: "xla" or "pallas_triton"; None = the best one that can run on the device; as
        in `hstu_attention`.
      interpret: run the GPU kernel in its interpreter, on any device and slowly, to test it.

    Raises:
      ValueError: arguments that do not fit together.
      NotImplementedError: the implementation cannot run here.

    Source: M-FALCON, arXiv:2402.17152 section 3.4 and algorithm 1.
    """
    known = dispatch.CACHED_IMPLEMENTATIONS
    dispatch.check_arguments(implementation, known, max_length, window)
    if position_table is not None and positions is None:
        raise ValueError("position_table needs positions")
    if window is not None and positions is None:
        raise ValueError("window needs positions")
    if time_table is not None and (query_times is None or key_times is None):
        raise ValueError("time_table needs query_times and key_times (int32 seconds)")
    if (own_k is None) != (own_v is None):
        raise ValueError("own_k and own_v belong together")
    if own_k is not None and time_table is not None and own_times is None:
        raise ValueError("time_table with own_k needs own_times (int32 seconds)")

    width = max(q.shape[3], v.shape[3])
    name, interpret = dispatch.resolve(implementation, q.dtype.name, width, interpret)
    starts = None
    if window is not None and positions is not None:
        starts = jnp.maximum(positions - window, 0)
    queries = Queries(starts, ends, None if position_table is None else positions)
    wide = lambda table: None if table is None else table.astype(jnp.float32)
    bias = Bias(wide(position_table), wide(time_table))
    if time_table is not None:
        bias = bias._replace(query_times=query_times, key_times=key_times)

    attend = dispatch.load(name, known)
    out = attend(q, k, v, queries, bias, Options(max_length, scale, interpret))
    if own_k is not None:
        assert own_v is not None
        own = _own_term(q, own_k, own_v, bias._replace(key_times=own_times), scale)
        out += own / max_length
    return out.astype(q.dtype)


def _own_term(q, k, v, bias: Bias, scale: float) -> Float[Array, "R L H V"]:
    """N times what each token adds to itself; bias.key_times: [R, L] or [R, 1], its own times."""
    wide = functools.partial(jnp.asarray, dtype=jnp.float32)
    scores = scale * (wide(q) * wide(k)).sum(-1, keepdims=True)
    if bias.position_table is not None:
        scores += bias.position_table[0]
    if bias.time_table is not None:
        assert bias.query_times is not None and bias.key_times is not None
        bucket = time_bucket(bias.query_times - bias.key_times)
        bucket = jnp.minimum(bucket, len(bias.time_table) - 1)
        scores += bias.time_table[bucket][..., None, None]
    return jax.nn.silu(scores) * wide(v)


def xla_cached_attention(
    q, k, v, queries: Queries, bias: Bias, options: Options
) -> Float[Array, "R L H V"]:
    """The attention to the cache in plain XLA, in float32."""
    index = jnp.arange(k.shape[2])
    seen = index < queries.ends[..., None]
    if queries.starts is not None:
        seen &= index >= queries.starts[..., None]
    total = jnp.where(seen, 0.0, -1e30)  # there SiLU is 0
    if bias.position_table is not None:
        assert queries.positions is not None
        distance = queries.positions[..., None] - index
        total += bias.position_table[jnp.clip(distance, 0, len(bias.position_table) - 1)]
    if bias.time_table is not None:
        assert bias.query_times is not None and bias.key_times is not None
        bucket = time_bucket(bias.query_times[..., None] - bias.key_times[:, None])
        total += bias.time_table[jnp.minimum(bucket, len(bias.time_table) - 1)]
    # Else its logarithms are taken again for every head and token.
    total = jax.lax.optimization_barrier(total)

    def head(q, k, v, bias):
        scores = options.scale * _dot("la,sa->ls", q, k.astype(q.dtype)) + bias
        weights = (jax.nn.silu(scores) * (1 / options.max_length)).astype(q.dtype)
        return _dot("ls,sv->lv", weights, v.astype(q.dtype))

    rows, length, heads, _ = q.shape
    flat = lambda x: x.reshape(rows * heads, *x.shape[2:])
    args = flat(jnp.swapaxes(q, 1, 2)), flat(k), flat(v), jnp.repeat(total, heads, axis=0)
    # XLA multiplies single matrices about twice as fast as a batch of them on a CPU, unless they
    # are tiny.
    one_by_one = dispatch.current_device().platform == "cpu" and length > TINY
    out = jax.lax.map(lambda x: head(*x), args) if one_by_one else jax.vmap(head)(*args)
    return jnp.swapaxes(out.reshape(rows, heads, length, -1), 1, 2)


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
