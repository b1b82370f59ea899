"""The HSTU block: pointwise projection, SiLU attention with relative bias, gated transformation.

Zhai et al. 2024, eq. 1-3, with the details of the public research code: no affine layer norms, no
bias in the first projection, no 1/sqrt(A), division by the fixed maximum length N.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gr_jax.config import ModelConfig
from gr_jax.data.batches.batch import Batch
from gr_jax.models.attention import RelativeBias, softmax_attention
from gr_jax.models.layers import NORM_EPS, Linear, Swiglu, dropout, split_key
from gr_jax.models.noise import Key
from pallas_kernels import hstu_attention
from pallas_kernels.elementwise import normalised_gate, normalised_projection


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
        self, x: Float[Array, "R L D"], batch: Batch, *, key: Key | None
    ) -> Float[Array, "R L D"]:
        """x plus the layer's output; dropout before the second projection when `key` is given."""
        return self.with_attention(x, lambda q, k, v: self.attend(q, k, v, batch), key=key)

    def with_attention(
        self,
        x: Float[Array, "R L D"],
        attend: Callable[..., Array],
        *,
        key: Key | None = None,
    ) -> Float[Array, "R L D"]:
        """The layer with `attend(q, k, v)`, from and to [R, L, H, width], as its attention."""
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
        key_output, key_swiglu = split_key(key, 2)
        x = x + self.output(dropout(gated, config.dropout, key_output))
        return self.swiglu(x, rate=config.dropout, key=key_swiglu)

    def attend(
        self,
        q: Float[Array, "R L H A"],
        k: Float[Array, "R L H A"],
        v: Float[Array, "R L H V"],
        batch: Batch,
    ) -> Float[Array, "R L H V"]:
        """Attention of the tokens of a batch to those before them."""
        if self.config.kind == "hstu_softmax":
            return softmax_attention(q, k, v, batch.segment)
        # Candidates may make a sequence longer than N. They see the history alone, so all of it has
        # to be in reach, but the normaliser stays N: a score does not depend on how many candidates
        # there are. User features are plain tokens: a prefix that sees the whole history would
        # carry it, with the labels in it, to the tokens after it in the next block.
        reach = self.max_length if batch.target is None else max(self.max_length, q.shape[1])
        attended = hstu_attention(
            q,
            k,
            v,
            batch.segment,
            max_length=reach,
            window=self.config.window or None,
            **self.bias.arguments(self.query_times(batch), batch.time),
            targets=batch.target,
            implementation=self.config.attention or None,
        )
        if reach != self.max_length:
            attended = (attended * jnp.float32(reach / self.max_length)).astype(attended.dtype)
        return attended

    def query_times(self, batch: Batch) -> Int[Array, "R L"]:
        """The times from which the bias counts the age of a key."""
        return batch.query_time if self.config.use_query_time else batch.time
