"""The sequence model: a packed batch in; out come unit vectors for retrieval or logits for ranking, one per token."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from gr_jax.config import ModelConfig
from gr_jax.data.batches.batch import Batch
from gr_jax.models.dlrm import Dlrm
from gr_jax.models.embeddings import InputEmbeddings
from gr_jax.models.heads import RankingHead
from gr_jax.models.hstu import NORM_EPS, HstuBlock
from gr_jax.models.layers import l2_normalise, layer_norm, split
from gr_jax.models.transformer import SasrecBlock


class Recommender(nnx.Module):
    """Input embeddings, a stack of blocks, and what the task makes of the last hidden state.

    Retrieval (`encode`): L2-normalised outputs; the head is their dot product with the L2-normalised rows of
    `embeddings.item_table`, divided by the temperature; losses and metrics compute it in chunks of the catalogue
    (Zhai et al. 2024, section 4.1.1). Ranking (`rank`): layer norm and a small network (section 2.2).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_items: int,
        max_length: int,
        num_actions: int = 0,
        num_feature_values: int = 0,
        num_tasks: int = 0,
        rngs: nnx.Rngs,
    ):
        """`max_length`: most tokens of a sequence, without candidates; `num_tasks`: 0 makes no ranking head."""
        self.config = config
        if config.kind != "sasrec":
            block, position_init = HstuBlock, jax.nn.initializers.xavier_normal()
        else:
            block, position_init = (
                SasrecBlock,
                jax.nn.initializers.truncated_normal(config.width**-0.5),
            )
        self.embeddings = InputEmbeddings(
            num_items,
            max_length,
            config.width,
            num_actions=num_actions,
            num_feature_values=num_feature_values,
            position_init=position_init,
            rngs=rngs,
        )
        self.blocks = nnx.List(
            [block(config, max_length, rngs=rngs) for _ in range(config.num_blocks)]
        )
        self.head = (
            RankingHead(config.width, config.head_width, num_tasks, rngs=rngs)
            if num_tasks
            else None
        )

    def encode(self, batch: Batch, *, key: PRNGKeyArray | None = None) -> Float[Array, "R L D"]:
        """Unit vectors in float32, 0 at padding; vector i answers "what comes after token i?".

        Args:
          batch: packed rows.
          key: of the dropout in training; None evaluates without dropout.
        """
        return jnp.where(batch.segment[..., None] != 0, l2_normalise(self._hidden(batch, key)), 0)

    def rank(self, batch: Batch, *, key: PRNGKeyArray | None = None) -> Float[Array, "R L Y"]:
        """Logits in float32 of what happens at the item of each token; those of item and candidate tokens mean it.

        A token sees itself and the tokens of its sequence before it, but no candidate: candidates (`batch.target`, at
        the end of a sequence, all with the position that the next token would have) do not see one another, and may
        make the sequence longer than `max_length`. User features are seen as any token.

        Args:
          batch: packed rows.
          key: of the dropout in training; None evaluates without dropout.

        Raises:
          ValueError: the model was made without tasks.
        """
        if self.head is None:
            raise ValueError("the model has no ranking head: it was made with num_tasks=0")
        return self.head(layer_norm(self._hidden(batch, key), NORM_EPS))

    def _hidden(self, batch: Batch, key: PRNGKeyArray | None) -> Float[Array, "R L D"]:
        config = self.config
        key_input, *keys = split(key, 1 + config.num_blocks)
        x = self.embeddings(
            batch, rate=config.input_dropout, dtype=jnp.dtype(config.compute_dtype), key=key_input
        )
        return self._scan(x, batch, keys) if config.scan_blocks else self._unroll(x, batch, keys)

    def _apply(
        self, graphdef: nnx.GraphDef, x: Array, batch: Batch, params: Any, key: PRNGKeyArray | None
    ) -> Array:
        def block(params, x, key):
            return nnx.merge(graphdef, params)(x, batch, key=key)

        return (jax.checkpoint(block) if self.config.remat else block)(params, x, key)

    def _unroll(self, x: Array, batch: Batch, keys: list) -> Array:
        for block, key in zip(self.blocks, keys, strict=True):
            graphdef, params = nnx.split(block)
            x = self._apply(graphdef, x, batch, params, key)
        return x

    def _scan(self, x: Array, batch: Batch, keys: list) -> Array:
        graphdef, *params = (
            nnx.split(self.blocks[0])[0],
            *(nnx.split(block)[1] for block in self.blocks),
        )
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        stacked_keys = None if keys[0] is None else jnp.stack(keys)

        def step(x, inputs):
            block_params, key = inputs
            return self._apply(graphdef, x, batch, block_params, key), None

        return jax.lax.scan(step, x, (stacked, stacked_keys))[0]


def functional(
    config: ModelConfig,
    *,
    num_items: int,
    max_length: int,
    num_actions: int = 0,
    num_feature_values: int = 0,
    num_tasks: int = 0,
):
    """The model as data and functions: its static structure and `init(key) -> params`, a nested dict of arrays.

    `nnx.merge(graphdef, params)` is the model with these parameters: a `Recommender` or, for config.kind="dlrm", a
    `Dlrm`; the arguments are theirs.
    """
    model = Dlrm if config.kind == "dlrm" else Recommender

    def build(rngs: nnx.Rngs) -> Recommender | Dlrm:
        return model(
            config,
            num_items=num_items,
            max_length=max_length,
            num_actions=num_actions,
            num_feature_values=num_feature_values,
            num_tasks=num_tasks,
            rngs=rngs,
        )

    graphdef, _ = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def init(key: PRNGKeyArray) -> dict:
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(params=key)), nnx.Param))

    return graphdef, init
