"""The HSTU block: pointwise projection, SiLU attention with relative bias, gated pointwise transformation.

Zhai et al. 2024, eq. 1-3, with the details of the public research code: no affine layer norms, no bias in the first
projection, no 1/sqrt(A), division by the fixed maximum length N.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from gr_jax.config import ModelConfig
from gr_jax.data.batches.batch import Batch
from gr_jax.models.feed_forward import Swiglu
from gr_jax.models.layers import Linear, dropout, split
from gr_jax.models.transformer import softmax_attention
from pallas_kernels import hstu_attention
from pallas_kernels.elementwise import normalised_gate, normalised_projection

NORM_EPS = 1e-6
TIME_BUCKETS = 129  # pallas_kernels.time_bucket gives 0 to 128


class RelativeBias(nnx.Module):
    """Tables of a block's attention bias, shared by its heads: b(i, j) = position[i - j] + time[bucket(dt)].

    Attributes:
      position: [N], by distance in events; None when the bias has no position part.
      time: [129], by logarithmic bucket of the time between the event asked about and the key; None without time part.
    """

    def __init__(self, kind: str, max_length: int, *, rngs: nnx.Rngs):
        normal = jax.nn.initializers.normal(0.02)
        has_position, has_time = kind in ("position", "both"), kind in ("time", "both")
        self.position = nnx.Param(normal(rngs.params(), (max_length,))) if has_position else None
        self.time = nnx.Param(normal(rngs.params(), (TIME_BUCKETS,))) if has_time else None


class HstuBlock(nnx.Module):
    """One HSTU layer with its residual.

    Attributes:
      uvqk: [D, 2 H V + 2 H A], the first projection; columns u, v, q, k, each head-major.
      bias: tables of the relative attention bias.
      output: second projection, [H V, D] with bias.
      swiglu: the layer after it, or None.
    """

    def __init__(self, config: ModelConfig, max_length: int, *, rngs: nnx.Rngs):
        self.config, self.max_length = config, max_length
        heads_v, heads_a = config.num_heads * config.v_width, config.num_heads * config.qk_width
        normal = jax.nn.initializers.normal(0.02)
        self.uvqk = nnx.Param(normal(rngs.params(), (config.width, 2 * heads_v + 2 * heads_a)))
        self.bias = RelativeBias(config.bias, max_length, rngs=rngs)
        self.output = Linear(
            heads_v, config.width, kernel_init=jax.nn.initializers.xavier_uniform(), rngs=rngs
        )
        self.swiglu = (
            Swiglu(config.width, config.swiglu_width, rngs=rngs) if config.swiglu_width else None
        )

    def __call__(
        self, x: Float[Array, "R L D"], batch: Batch, *, key: PRNGKeyArray | None
    ) -> Float[Array, "R L D"]:
        """x plus the layer's output; dropout before the second projection when `key` is given."""
        return self.around(x, lambda q, k, v: self._attend(q, k, v, batch), key=key)

    def around(
        self,
        x: Float[Array, "R L D"],
        attend: Callable[..., Array],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "R L D"]:
        """The layer with `attend(q, k, v)`, of and to [R, L, H, width], as its attention."""
        config = self.config
        heads_v, heads_a = config.num_heads * config.v_width, config.num_heads * config.qk_width
        uvqk = normalised_projection(x, self.uvqk.astype(x.dtype), NORM_EPS)
        u, v, q, k = jnp.split(uvqk, (heads_v, 2 * heads_v, 2 * heads_v + heads_a), axis=-1)
        attended = attend(*(y.reshape(*x.shape[:2], config.num_heads, -1) for y in (q, k, v)))
        gated = normalised_gate(
            u, attended.reshape(u.shape), NORM_EPS, implementation=config.attention or None
        )
        if self.swiglu is None:
            return x + self.output(dropout(gated, config.dropout, key))
        key_output, key_swiglu = split(key, 2)
        x = x + self.output(dropout(gated, config.dropout, key_output))
        return self.swiglu(x, rate=config.dropout, key=key_swiglu)

    def attention_arguments(self, batch: Batch) -> dict:
        """Keywords of `hstu_attention` and `hstu_cached_attention` that block and batch decide."""
        config, table = self.config, lambda param: None if param is None else param[...]
        asked = batch.query_time if config.use_query_time else batch.time
        with_time = self.bias.time is not None
        return dict(
            max_length=self.max_length,
            window=config.window or None,
            position_table=table(self.bias.position),
            time_table=table(self.bias.time),
            query_times=asked if with_time else None,
            key_times=batch.time if with_time else None,
        )

    def _attend(self, q: Array, k: Array, v: Array, batch: Batch) -> Float[Array, "R L H V"]:
        config = self.config
        if config.kind == "hstu_softmax":
            return softmax_attention(q, k, v, batch.segment)
        # Candidates may make a sequence longer than N. They see the history alone, so all of it has
        # to be in reach, but the normaliser stays N: a score does not depend on how many candidates
        # there are. User features are plain tokens: a prefix that sees the whole history would
        # carry it, with the labels in it, to the tokens after it in the next block.
        reach = self.max_length if batch.target is None else max(self.max_length, q.shape[1])
        arguments = self.attention_arguments(batch)
        arguments["max_length"] = reach
        attended = hstu_attention(
            *(q, k, v, batch.segment),
            targets=batch.target,
            implementation=config.attention or None,
            **arguments,
        )
        if reach != self.max_length:
            attended = (attended * jnp.float32(reach / self.max_length)).astype(attended.dtype)
        return attended
