"""Full-catalogue leave-one-out evaluation of a split, batch by batch."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from gr_jax.config import Config
from gr_jax.data.batch import Batch, Queries
from gr_jax.data.pipeline import EvaluationRows
from gr_jax.training import metrics, sharding


def make_evaluator(
    graphdef: nnx.GraphDef, config: Config, *, num_items: int, mesh: jax.sharding.Mesh
) -> Callable[[dict, EvaluationRows], dict[str, float]]:
    """`evaluate(params, rows) -> metrics`: those of `metrics.summarise`, every item of the catalogue ranked."""

    @jax.jit
    def encode(params: dict, batch: Batch, token: Int[Array, " Q"]) -> Float[Array, "Q D"]:
        hidden = nnx.merge(graphdef, params).encode(batch)
        return hidden.reshape(-1, hidden.shape[-1])[token]

    # Apart from `encode`, because the width of `seen` takes several values and this part compiles quickly.
    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def rank(params: dict, queries: Float[Array, "Q D"], target: Int[Array, " Q"], seen: Int[Array, "Q S"]) -> dict:
        return metrics.target_ranks(
            queries,
            params["embeddings"]["item_table"],
            target,
            seen,
            num_items=num_items,
            temperature=config.model.temperature,
            chunk_items=config.evaluate.chunk_items,
        )

    encode_on_mesh = sharding.on_mesh(mesh, encode)

    def one_batch(params: dict, batch: Batch, queries: Queries) -> dict:
        batch = sharding.put_whole(batch, sharding.batch_sharding(mesh))
        asked = queries.token, queries.target, queries.seen
        token, target, seen = sharding.put_whole(asked, sharding.replicated(mesh))
        return rank(params, encode_on_mesh(params, batch, token), target, seen)

    def evaluate(params: dict, rows: EvaluationRows) -> dict[str, float]:
        ranks, log_probs, history, pending = [], [], [], []
        for index in range(len(rows)):
            batch, queries, users = rows.batch(index)
            pending.append((one_batch(params, batch, queries), len(users)))
            history.append(rows.history(users))
            if (
                len(pending) > 1 or index == len(rows) - 1
            ):  # the device works on one batch while the host packs the next
                for result, count in pending:
                    ranks.append(np.asarray(result["rank"])[:count])
                    log_probs.append(np.asarray(result["log_prob"])[:count])
                pending.clear()
        return metrics.summarise(np.concatenate(ranks), np.concatenate(log_probs), np.concatenate(history))

    return evaluate
