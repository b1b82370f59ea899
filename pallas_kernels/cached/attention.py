"""HSTU attention of new tokens against the cached keys and values of a sequence: one op for inference.

Letters: R rows, one sequence each; L new tokens of a row; S cached tokens that a row has room for; H heads; A width of
queries and keys; V width of values.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.masks import time_bucket

TINY = 8  # queries of a row up to which a CPU computes all heads at once


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
    own_k: Float[Array, "R L H A"] | None = None,
    own_v: Float[Array, "R L H V"] | None = None,
    own_times: Int[Array, "R #L"] | None = None,
    implementation: str | None = None,
    interpret: bool = False,
) -> Float[Array, "R L H V"]:
    """Returns out_i = sum_{j < ends_i} SiLU(scale * q_i.k_j + bias_ij) / N * v_j, plus the same of its own key.

    It is `hstu_attention` for the last tokens of a sequence whose other keys and values are stored. Tokens that are
    appended write theirs into the cache first, and see j < ends_i = their position + 1. Candidates see the history,
    ends_i = its length, and themselves through `own_k` and `own_v`, never one another: however they are divided into
    calls, the result is the same.

    q: float32 or bfloat16; the result has its dtype. k, v: float32 or bfloat16, by head; finite, also where no query
        looks. Sums and bias are float32.
    ends, positions, query_times, own_times: [R, L], or [R, 1] where all tokens of a row share them: then the bias is
        looked up once for a row and not for each of its tokens.
    max_length: N, the fixed normaliser, the one of the forward that made the cache.
    position_table: bias by positions_i - j, clipped to [0, P - 1]; the cached token j has position j.
    time_table: bias by `time_bucket(query_times_i - key_times_j)`, clipped to the table; times are int32 seconds.
    implementation: "xla" or "pallas_triton"; None = the best one that can run on the device; as in `hstu_attention`.
    interpret: runs the GPU kernel in its interpreter, on any device and slowly, to test it.
    Not differentiable.
    Raises ValueError for arguments that do not fit together, NotImplementedError where an implementation cannot run.
    Source: M-FALCON, arXiv:2402.17152 section 3.4 and algorithm 1.
    """
    known = dispatch.CACHED_IMPLEMENTATIONS
    if implementation is not None and implementation not in known:
        raise ValueError(
            f"implementation={implementation!r}: must be None or one of {', '.join(known)}"
        )
    if max_length < 1:
        raise ValueError(f"max_length={max_length}: must be at least 1")
    if position_table is not None and positions is None:
        raise ValueError("position_table needs positions")
    if time_table is not None and (query_times is None or key_times is None):
        raise ValueError("time_table needs query_times and key_times (int32 seconds)")
    if (own_k is None) != (own_v is None):
        raise ValueError("own_k and own_v belong together")
    if own_k is not None and time_table is not None and own_times is None:
        raise ValueError("time_table with own_k needs own_times (int32 seconds)")

    device, dtype, width = dispatch.current_device(), q.dtype.name, max(q.shape[3], v.shape[3])
    name = implementation or dispatch.choose(device, dtype, width)
    on_cpu = {}
    if interpret and name != "xla":
        on_cpu = {"interpret": True}
    elif reason := dispatch.why_not(name, device, dtype, width):
        raise NotImplementedError(f"implementation={name!r} cannot run here: {reason}")
    position = None if position_table is None else position_table.astype(jnp.float32)
    time = None if time_table is None else time_table.astype(jnp.float32)
    attend = dispatch.load(name, known)
    out = attend(
        q,
        k,
        v,
        ends,
        position,
        time,
        positions,
        query_times,
        key_times,
        max_length=max_length,
        scale=scale,
        **on_cpu,
    )
    if own_k is not None:
        assert own_v is not None
        out += (
            _own_term(q, own_k, own_v, position, time, query_times, own_times, scale) / max_length
        )
    return out.astype(q.dtype)


def _own_term(
    q, k, v, position_table, time_table, query_times, own_times, scale
) -> Float[Array, "R L H V"]:
    """Returns N times what each token adds to itself."""
    wide = functools.partial(jnp.asarray, dtype=jnp.float32)
    scores = scale * (wide(q) * wide(k)).sum(-1, keepdims=True)
    if position_table is not None:
        scores += position_table[0]
    if time_table is not None:
        bucket = jnp.minimum(time_bucket(query_times - own_times), len(time_table) - 1)
        scores += time_table[bucket][..., None, None]
    return jax.nn.silu(scores) * wide(v)


def xla_cached_attention(
    q,
    k,
    v,
    ends,
    position_table,
    time_table,
    positions,
    query_times,
    key_times,
    *,
    max_length: int,
    scale: float,
) -> Float[Array, "R L H V"]:
    """Returns the attention to the cache in plain XLA, in float32; arguments as in `hstu_cached_attention`."""
    index = jnp.arange(k.shape[2])
    bias = jnp.where(index < ends[..., None], 0.0, -1e30)  # there SiLU is 0
    if position_table is not None:
        bias += position_table[jnp.clip(positions[..., None] - index, 0, len(position_table) - 1)]
    if time_table is not None:
        bias += time_table[
            jnp.minimum(
                time_bucket(query_times[..., None] - key_times[:, None]), len(time_table) - 1
            )
        ]
    bias = jax.lax.optimization_barrier(
        bias
    )  # else its logarithms are taken again for every head and token

    def head(q, k, v, bias):
        scores = scale * _dot("la,sa->ls", q, k.astype(q.dtype)) + bias
        weights = (jax.nn.silu(scores) * (1 / max_length)).astype(q.dtype)
        return _dot("ls,sv->lv", weights, v.astype(q.dtype))

    rows, length, heads, _ = q.shape
    flat = lambda x: x.reshape(rows * heads, *x.shape[2:])
    args = flat(jnp.swapaxes(q, 1, 2)), flat(k), flat(v), jnp.repeat(bias, heads, axis=0)
    # XLA multiplies single matrices about twice as fast as a batch of them on a CPU, unless they are tiny.
    in_turn = dispatch.current_device().platform == "cpu" and length > TINY
    out = jax.lax.map(lambda x: head(*x), args) if in_turn else jax.vmap(head)(*args)
    return jnp.swapaxes(out.reshape(rows, heads, length, -1), 1, 2)


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
