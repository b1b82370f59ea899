"""Attention of the blocks: tables of HSTU's relative bias, and softmax attention."""

from __future__ import annotations

import math
from typing import TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gr_jax.models.layers import dropout
from gr_jax.models.noise import Key

TIME_BUCKETS = 129  # pallas_kernels.time_bucket gives 0 to 128
MASKED = -1e30  # finite, so that a padding row, where every key is masked, stays free of NaN


class BiasArguments(TypedDict):
    """The bias of a block as arguments of `hstu_attention` and `hstu_cached_attention`."""

    position_table: Float[Array, " N"] | None
    time_table: Float[Array, " _"] | None
    query_times: Int[Array, "R Q"] | None
    key_times: Int[Array, "R K"] | None


class RelativeBias(nnx.Module):
    """Tables of a block's attention bias: b(i, j) = position[i - j] + time[bucket(dt)].

    All heads share them.

    Attributes:
      position: [N], by distance in tokens; None without this part.
      time: [129], by logarithmic bucket of the time from key to query; None without this part.
    """

    def __init__(self, kind: str, max_length: int, *, rngs: nnx.Rngs):
        normal = jax.nn.initializers.normal(0.02)
        has_position, has_time = kind in ("position", "both"), kind in ("time", "both")
        self.position = nnx.Param(normal(rngs.params(), (max_length,))) if has_position else None
        self.time = nnx.Param(normal(rngs.params(), (TIME_BUCKETS,))) if has_time else None

    def arguments(
        self, query_times: Int[Array, "R Q"], key_times: Int[Array, "R K"]
    ) -> BiasArguments:
        """The bias as arguments of an attention op."""
        return {
            "position_table": None if self.position is None else self.position[...],
            "time_table": None if self.time is None else self.time[...],
            "query_times": None if self.time is None else query_times,
            "key_times": None if self.time is None else key_times,
        }


def softmax_attention(
    q: Float[Array, "R L H A"],
    k: Float[Array, "R L H A"],
    v: Float[Array, "R L H V"],
    segments: Int[Array, "R L"],
    *,
    rate: float = 0.0,
    key: Key | None = None,
) -> Float[Array, "R L H V"]:
    """Causal softmax attention inside each segment; with `key`, dropout of its weights."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("rqha,rkha->rhqk", q, k, preferred_element_type=wide)
    scores /= math.sqrt(q.shape[-1])
    token = jnp.arange(segments.shape[1])
    allowed = (segments[:, :, None] == segments[:, None, :]) & (token[:, None] >= token[None, :])
    weights = jax.nn.softmax(jnp.where(allowed[:, None], scores, MASKED), axis=-1)
    return jnp.einsum("rhqk,rkhv->rqhv", dropout(weights, rate, key).astype(v.dtype), v)
