"""The retrieval model: a packed batch in, a unit vector per token out; the next item has the nearest vector."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from gr_jax.config import ModelConfig
from gr_jax.data.batch import Batch
from gr_jax.models.embeddings import InputEmbeddings
from gr_jax.models.hstu import HstuBlock
from gr_jax.models.layers import l2_normalise, split
from gr_jax.models.transformer import SasrecBlock


class Recommender(nnx.Module):
    """Input embeddings, a stack of blocks and L2-normalised outputs (Zhai et al. 2024, section 4.1.1).

    The retrieval head is the dot product of an output with the L2-normalised rows of `embeddings.item_table`, divided
    by the temperature; losses and metrics compute it in chunks of the catalogue.
    """

    def __init__(self, config: ModelConfig, *, num_items: int, max_length: int, rngs: nnx.Rngs):
        self.config = config
        if config.kind == "hstu":
            block, position_init = HstuBlock, jax.nn.initializers.xavier_normal()
        else:
            block, position_init = SasrecBlock, jax.nn.initializers.truncated_normal(config.width**-0.5)
        self.embeddings = InputEmbeddings(num_items, max_length, config.width, position_init=position_init, rngs=rngs)
        self.blocks = nnx.List([block(config, max_length, rngs=rngs) for _ in range(config.num_blocks)])

    def encode(self, batch: Batch, *, key: PRNGKeyArray | None = None) -> Float[Array, "R L D"]:
        """Unit vectors in float32, 0 at padding; vector i answers "what comes after token i?".

        Args:
          batch: packed rows.
          key: of the dropout in training; None evaluates without dropout.
        """
        config = self.config
        key_input, *keys = split(key, 1 + config.num_blocks)
        x = self.embeddings(
            batch.item,
            batch.position,
            rate=config.input_dropout,
            dtype=jnp.dtype(config.compute_dtype),
            key=key_input,
        )
        x = self._scan(x, batch, keys) if config.scan_blocks else self._unroll(x, batch, keys)
        return jnp.where(batch.segment[..., None] != 0, l2_normalise(x), 0)

    def _apply(self, graphdef: nnx.GraphDef, x: Array, batch: Batch, params: Any, key: PRNGKeyArray | None) -> Array:
        def block(params, x, key):
            return nnx.merge(graphdef, params)(x, batch, key=key)

        return (jax.checkpoint(block) if self.config.remat else block)(params, x, key)

    def _unroll(self, x: Array, batch: Batch, keys: list) -> Array:
        for block, key in zip(self.blocks, keys, strict=True):
            graphdef, params = nnx.split(block)
            x = self._apply(graphdef, x, batch, params, key)
        return x

    def _scan(self, x: Array, batch: Batch, keys: list) -> Array:
        graphdef, *params = nnx.split(self.blocks[0])[0], *(nnx.split(block)[1] for block in self.blocks)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        stacked_keys = None if keys[0] is None else jnp.stack(keys)

        def step(x, inputs):
            block_params, key = inputs
            return self._apply(graphdef, x, batch, block_params, key), None

        return jax.lax.scan(step, x, (stacked, stacked_keys))[0]


def functional(config: ModelConfig, *, num_items: int, max_length: int):
    """The model as data and functions: its static structure and `init(key) -> params`, a nested dict of arrays.

    `nnx.merge(graphdef, params)` is the model with these parameters.
    """

    def build(rngs: nnx.Rngs) -> Recommender:
        return Recommender(config, num_items=num_items, max_length=max_length, rngs=rngs)

    graphdef, _ = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def init(key: PRNGKeyArray) -> dict:
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(params=key)), nnx.Param))

    return graphdef, init
