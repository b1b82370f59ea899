"""SASRec as in the public research code: causal softmax attention, then a feed-forward layer."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gr_jax.config import ModelConfig
from gr_jax.data.batches.batch import Batch
from gr_jax.models.attention import softmax_attention
from gr_jax.models.layers import Linear, dropout, layer_norm, split_key
from gr_jax.models.noise import Key

NORM_EPS = 1e-8


class SasrecBlock(nnx.Module):
    """One SASRec layer: r = LN(Q + attention(Q, x, x)) with Q = LN(x), then r + FFN(r)."""

    def __init__(self, config: ModelConfig, max_length: int, *, rngs: nnx.Rngs):
        del max_length  # softmax needs no fixed normaliser
        self.config = config
        linear = functools.partial(
            Linear, kernel_init=jax.nn.initializers.xavier_normal(), rngs=rngs
        )
        self.query = linear(config.width, config.width)
        self.key = linear(config.width, config.width)
        self.value = linear(config.width, config.width)
        self.attention_output = linear(config.width, config.width)
        self.ffn_in = linear(config.width, config.ffn_width)
        self.ffn_out = linear(config.ffn_width, config.width)

    def __call__(
        self, x: Float[Array, "R L D"], batch: Batch, *, key: Key | None
    ) -> Float[Array, "R L D"]:
        """The layer's output, 0 at padding.

        With `key`, dropout of the attention weights and in the feed-forward layer.
        """
        rate = self.config.dropout
        key_attention, key_hidden, key_out = split_key(key, 3)
        in_heads = (*x.shape[:2], self.config.num_heads, -1)
        normed = layer_norm(x, NORM_EPS)
        attended = softmax_attention(
            self.query(normed).reshape(in_heads),
            self.key(x).reshape(in_heads),
            self.value(x).reshape(in_heads),
            batch.segment,
            rate=rate,
            key=key_attention,
        )
        r = layer_norm(normed + self.attention_output(attended.reshape(x.shape)), NORM_EPS)
        hidden = jax.nn.relu(dropout(self.ffn_in(r), rate, key_hidden))
        out = r + dropout(self.ffn_out(hidden), rate, key_out)
        return jnp.where(batch.segment[..., None] != 0, out, 0)
