"""Full-catalogue leave-one-out evaluation of a split, batch by batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from gr_jax.config import Config
from gr_jax.data.batches.batch import Batch, Queries
from gr_jax.data.batches.evaluation import EvaluationBatches
from gr_jax.training import sharding
from gr_jax.training.lookahead import one_behind
from gr_jax.training.retrieval import metrics


class UserRanks(NamedTuple):
    """Rank and probability of the target of each user of a split, in the order of evaluation."""

    user: Int[np.ndarray, " Q"]
    # as in `metrics.target_ranks`; inf where the target is left out as an item that the user had
    rank: Float[np.ndarray, " Q"]
    log_prob: Float[np.ndarray, " Q"]
    history: Int[np.ndarray, " Q"]  # events before the target


def make_user_ranks(
    graphdef: nnx.GraphDef, config: Config, *, num_items: int, mesh: jax.sharding.Mesh
) -> Callable[[dict, EvaluationBatches], UserRanks]:
    """`user_ranks(params, rows)`: the rank of every user's target in the whole catalogue."""

    @jax.jit
    def encode(params: dict, batch: Batch, token: Int[Array, " Q"]) -> Float[Array, "Q D"]:
        hidden = nnx.merge(graphdef, params).encode(batch)
        return hidden.reshape(-1, hidden.shape[-1])[token]

    # Apart from `encode`, because the width of `seen` takes several values and this part compiles
    # quickly.
    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def rank(
        params: dict,
        queries: Float[Array, "Q D"],
        target: Int[Array, " Q"],
        seen: Int[Array, "Q S"],
    ) -> dict:
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

    def user_ranks(params: dict, rows: EvaluationBatches) -> UserRanks:
        def ranked() -> Iterator[tuple[dict, Array, Int[np.ndarray, " q"]]]:
            for index in range(len(rows)):
                batch, queries, users = rows.batch(index)
                yield one_batch(params, batch, queries), queries.is_left_out, users

        found = []
        for result, is_left_out, users in one_behind(ranked()):
            rank = np.where(is_left_out, np.inf, np.asarray(result["rank"]))
            columns = (column[: len(users)] for column in (rank, np.asarray(result["log_prob"])))
            found.append((users, *columns, rows.history(users)))
        return UserRanks(*(np.concatenate(column) for column in zip(*found, strict=True)))

    return user_ranks


def make_evaluator(
    graphdef: nnx.GraphDef, config: Config, *, num_items: int, mesh: jax.sharding.Mesh
) -> Callable[[dict, EvaluationBatches], dict[str, float]]:
    """`evaluate(params, rows)`: `metrics.summarise` of the ranks of `make_user_ranks`."""
    user_ranks = make_user_ranks(graphdef, config, num_items=num_items, mesh=mesh)

    def evaluate(params: dict, rows: EvaluationBatches) -> dict[str, float]:
        found = user_ranks(params, rows)
        return metrics.summarise(found.rank, found.log_prob, found.history)

    return evaluate
