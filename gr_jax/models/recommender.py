"""The sequence model: packed rows in, unit vectors (retrieval) or logits (ranking) out.

`Recommender.hidden` is the trunk. Its tail is `vectors` in retrieval, and `logits` followed by
`predictions` in ranking; training, evaluation and serving, with a cache or without, all call these.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from gr_jax.config import ModelConfig
from gr_jax.data.batches.batch import Batch
from gr_jax.models.dlrm import Dlrm
from gr_jax.models.embeddings import InputEmbeddings
from gr_jax.models.heads import RankingHead, predictions
from gr_jax.models.hstu import HstuBlock
from gr_jax.models.layers import NORM_EPS, l2_normalise, layer_norm, split_key
from gr_jax.models.noise import Key
from gr_jax.models.sasrec import SasrecBlock
from gr_jax.models.sizes import ModelSizes


class Recommender(nnx.Module):
    """Input embeddings, a stack of blocks, and the tail of retrieval or ranking.

    Retrieval (`encode`): L2-normalised outputs; the head is their dot product with the
    L2-normalised entries of `embeddings.item_table`, divided by the temperature; losses and metrics
    compute it in chunks of the catalogue (Zhai et al. 2024, section 4.1.1). Ranking (`rank`): layer
    norm and a small network (section 2.2).
    """

    def __init__(self, config: ModelConfig, sizes: ModelSizes, *, rngs: nnx.Rngs):
        self.config, self.sizes = config, sizes
        if config.kind != "sasrec":
            block, position_init = HstuBlock, jax.nn.initializers.xavier_normal()
        else:
            block = SasrecBlock
            position_init = jax.nn.initializers.truncated_normal(config.width**-0.5)
        self.embeddings = InputEmbeddings(
            sizes, config.width, position_init=position_init, rngs=rngs
        )
        self.blocks = nnx.List(
            [block(config, sizes.max_length, rngs=rngs) for _ in range(config.num_blocks)]
        )
        self.head = (
            RankingHead(config.width, config.head_width, sizes.num_tasks, rngs=rngs)
            if sizes.tasks
            else None
        )

    def encode(self, batch: Batch, *, key: Key | None = None) -> Float[Array, "R L D"]:
        """Unit vectors, 0 at padding; vector i answers "what comes after token i?".

        Args:
          batch: packed rows.
          key: of the dropout in training; None evaluates without dropout.
        """
        return jnp.where(batch.segment[..., None] != 0, self.vectors(self.hidden(batch, key)), 0)

    def rank(self, batch: Batch, *, key: Key | None = None) -> Float[Array, "R L Y"]:
        """Logits of each task at each token; only those of items and candidates have a meaning.

        A token sees itself and the tokens of its sequence before it, but no candidate: candidates
        (`batch.target`, at the end of a sequence, all with the position that the next token would
        have) do not see one another, and may make the sequence longer than `max_length`. User
        features are seen as any token.

        Args:
          batch: packed rows.
          key: of the dropout in training; None evaluates without dropout.

        Raises:
          ValueError: the model was made without tasks.
        """
        return self.logits(self.hidden(batch, key))

    def vectors(self, hidden: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
        """Retrieval: unit vectors of last hidden states, in float32 or wider."""
        return l2_normalise(hidden)

    def item_vectors(self) -> Float[Array, "entries D"]:
        """Retrieval: unit vectors of the item table, by item id."""
        return l2_normalise(self.embeddings.item_table[...])

    def logits(self, hidden: Float[Array, "*T D"]) -> Float[Array, "*T Y"]:
        """Ranking: logits of last hidden states, in float32 or wider.

        Raises:
          ValueError: the model was made without tasks.
        """
        if self.head is None:
            raise ValueError("the model has no ranking head: it was made with tasks=()")
        return self.head(layer_norm(hidden, NORM_EPS))

    def predictions(self, logits: Float[Array, "*T Y"]) -> Float[Array, "*T Y"]:
        """Ranking: the probability of each task, or the number where the task is a regression."""
        return predictions(logits, self.sizes.tasks)

    def hidden(self, batch: Batch, key: Key | None = None) -> Float[Array, "R L D"]:
        """Last hidden states, in the dtype that the model computes in."""
        config = self.config
        key_input, *keys = split_key(key, 1 + config.num_blocks)
        dtype = jnp.dtype(config.compute_dtype)
        x = self.embeddings(batch, rate=config.input_dropout, dtype=dtype, key=key_input)
        return self._scan(x, batch, keys) if config.scan_blocks else self._unroll(x, batch, keys)

    def _call_of(self, graphdef: nnx.GraphDef, batch: Batch) -> Callable[..., Array]:
        """`call(params, x, key)` of a block, recomputed in the backward pass if so configured."""

        def call(params, x, key):
            return nnx.merge(graphdef, params)(x, batch, key=key)

        return jax.checkpoint(call) if self.config.remat else call

    def _unroll(self, x: Array, batch: Batch, keys: list) -> Array:
        for block, key in zip(self.blocks, keys, strict=True):
            graphdef, params = nnx.split(block)
            x = self._call_of(graphdef, batch)(params, x, key)
        return x

    def _scan(self, x: Array, batch: Batch, keys: list) -> Array:
        call = self._call_of(nnx.split(self.blocks[0])[0], batch)
        params = [nnx.split(block)[1] for block in self.blocks]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        stacked_keys = None if keys[0] is None else jax.tree.map(lambda *k: jnp.stack(k), *keys)

        def step(x, inputs):
            block_params, key = inputs
            return call(block_params, x, key), None

        return jax.lax.scan(step, x, (stacked, stacked_keys))[0]


def make_model(
    config: ModelConfig, sizes: ModelSizes
) -> tuple[nnx.GraphDef, Callable[[PRNGKeyArray], dict]]:
    """The model as data and functions: `graphdef`, its structure, and `init(key) -> params`.

    `nnx.merge(graphdef, params)`, with params a nested dict of arrays, is the model: a
    `Recommender`, or a `Dlrm` for config.kind="dlrm".
    """
    model = Dlrm if config.kind == "dlrm" else Recommender
    build = lambda rngs: model(config, sizes, rngs=rngs)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def init(key: PRNGKeyArray) -> dict:
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(params=key)), nnx.Param))

    return graphdef, init
