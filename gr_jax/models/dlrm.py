"""The ranking baseline without sequences of tokens: one event at a time, its history pooled.

Deep Interest Network (Zhou et al. 2018, arXiv:1706.06978) for the history, DCN-v2 (Wang et al.
2020, arXiv:2008.13535) for the crosses of features, and a multi-layer perceptron: the family of
models that Zhai et al. 2024 compare with.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from gr_jax.config import ModelConfig
from gr_jax.data.batches.batch import Impressions
from gr_jax.models.attention import TIME_BUCKETS
from gr_jax.models.embeddings import ContentEmbeddings
from gr_jax.models.heads import predictions
from gr_jax.models.layers import Linear, dropout, split_key, widen
from gr_jax.models.lookup import take_entries
from gr_jax.models.noise import Key
from gr_jax.models.sizes import ModelSizes
from pallas_kernels import time_bucket

ATTENTION_WIDTH = 36  # hidden width of the activation unit, as in the paper of DIN


class ActivationUnit(nnx.Module):
    """Weight of a past event for the candidate: a small network on both vectors and their product.

    The difference of the vectors, which DIN adds to its inputs, is a linear map of the two. The
    first layer is one map for each input, so that the candidate is mapped once, not once for each
    past event.

    Attributes:
      event, product, candidate: [D, hidden]; weight: [hidden, 1].
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        linear = functools.partial(
            Linear, kernel_init=jax.nn.initializers.xavier_uniform(), rngs=rngs
        )
        self.event, self.product, self.candidate = (
            linear(width, ATTENTION_WIDTH) for _ in range(3)
        )
        self.weight = linear(ATTENTION_WIDTH, 1)

    def __call__(
        self, event: Float[Array, "B N D"], candidate: Float[Array, "B D"]
    ) -> Float[Array, "B N"]:
        """Weights of any sign and size: without a softmax, many related events outweigh few."""
        candidate = candidate[:, None]
        hidden = self.event(event) + self.product(event * candidate) + self.candidate(candidate)
        return self.weight(jax.nn.silu(hidden))[..., 0]


class Dlrm(nnx.Module):
    """DIN pooling, DCN-v2 crosses and a perceptron side by side, one logit per task.

    The input of both is the candidate, the user's features, the history pooled by attention and by
    its mean, and counts: log1p(events) and the share of events with each action. Vectors are sums
    of their parts, with one table for each kind of id: an event is item + item features + action +
    bucket of its age, so that the order of the history does not matter beyond the ages.

    Attributes:
      embeddings: tables of items, feature values and actions. age_table: [129, D].
      activation: weights of past events. cross: layers [W, W]. hidden: the perceptron.
      output: [W + last hidden width, Y], on crosses and perceptron.
    """

    def __init__(self, config: ModelConfig, sizes: ModelSizes, *, rngs: nnx.Rngs):
        """`sizes.max_length` only scales the inputs, so that they are of the order of 1."""
        self.config, self.sizes = config, sizes
        linear = functools.partial(
            Linear, kernel_init=jax.nn.initializers.xavier_uniform(), rngs=rngs
        )
        self.embeddings = ContentEmbeddings(sizes, config.width, rngs=rngs)
        age_init = jax.nn.initializers.truncated_normal(0.02 * math.sqrt(config.width))
        self.age_table = nnx.Param(age_init(rngs.params(), (TIME_BUCKETS, config.width)))
        self.activation = ActivationUnit(config.width, rngs=rngs)
        width = input_width(config, num_actions=sizes.num_actions)
        self.cross = nnx.List([linear(width, width) for _ in range(config.cross_layers)])
        widths = (width, *config.hidden_widths)
        self.hidden = nnx.List([linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)])
        self.output = linear(width + widths[-1], sizes.num_tasks)

    def rank(self, impressions: Impressions, *, key: Key | None = None) -> Float[Array, "B Y"]:
        """Logits in float32; with a `key`, dropout on the input and in the perceptron."""
        config = self.config
        key_input, *keys = split_key(key, 1 + len(self.hidden))
        x0 = dropout(self._input(impressions), config.input_dropout, key_input)
        crossed = deep = x0
        for layer in self.cross:
            crossed = x0 * layer(crossed) + crossed
        for layer, key_hidden in zip(self.hidden, keys, strict=True):
            deep = dropout(jax.nn.silu(layer(deep)), config.dropout, key_hidden)
        return self.output(widen(jnp.concatenate([crossed, deep], -1)))

    def predictions(self, logits: Float[Array, "*T Y"]) -> Float[Array, "*T Y"]:
        """The probability of each task, or the number itself where the task is a regression."""
        return predictions(logits, self.sizes.tasks)

    def _input(self, impressions: Impressions) -> Float[Array, "B W"]:
        dtype = jnp.dtype(self.config.compute_dtype)
        items = self.embeddings.items(impressions.catalogue_features)
        candidate = take_entries(items, impressions.item).astype(dtype)
        user = jnp.zeros_like(candidate)
        if impressions.user_features is not None:
            user = self.embeddings.of_values(impressions.user_features).sum(1).astype(dtype)
        real = impressions.history_item != 0
        event = take_entries(items, impressions.history_item)
        if self.sizes.num_actions:
            event += self.embeddings.of_actions(impressions.history_action)
        event = jnp.where(
            real[..., None], event + self.age_table[time_bucket(impressions.history_age)], 0
        )
        event = event.astype(dtype)
        weights = jnp.where(real, self.activation(event, candidate), 0)
        attended = jnp.einsum("bn,bnd->bd", weights, event) / math.sqrt(self.sizes.max_length)
        mean = event.sum(1) / jnp.maximum(real.sum(1), 1)[:, None].astype(dtype)
        counts = self._counts(impressions, real).astype(dtype)
        return jnp.concatenate([candidate, user, attended, mean, counts], -1)

    def _counts(self, impressions: Impressions, real: Bool[Array, "B N"]) -> Float[Array, "B _"]:
        """log1p(events), 1 for a full history, and the share of the events with each action."""
        events = real.sum(1, keepdims=True).astype(jnp.float32)
        bits = (
            impressions.history_action[..., None] >> jnp.arange(1, self.sizes.num_actions + 1) & 1
        )
        shares = jnp.where(real[..., None], bits, 0).sum(1) / jnp.maximum(events, 1)
        return jnp.concatenate([jnp.log1p(events) / math.log1p(self.sizes.max_length), shares], -1)


def input_width(config: ModelConfig, *, num_actions: int) -> int:
    """W, the width of the input of crosses and perceptron: four vectors and the counts."""
    return 4 * config.width + 1 + num_actions
