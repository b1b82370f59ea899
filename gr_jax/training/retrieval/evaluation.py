"""Evaluation of a split over the full catalogue, batch by batch."""

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
from gr_jax.training.retrieval import beyond_accuracy, metrics
from gr_jax.training.retrieval.lists import best_items


class UserRanks(NamedTuple):
    """Rank and probability of the target of each user of a split, in the order of evaluation."""

    user: Int[np.ndarray, " Q"]
    target: Int[np.ndarray, " Q"]  # item id
    # as in `metrics.target_ranks`; inf where the target is left out as an item that the user had
    rank: Float[np.ndarray, " Q"]
    log_prob: Float[np.ndarray, " Q"]
    history: Int[np.ndarray, " Q"]  # events before the target
    best: Int[np.ndarray, "Q 10"]  # ids of the best items, 0 = none; Q = 0 if not asked for


def make_user_ranks(
    graphdef: nnx.GraphDef, config: Config, *, num_items: int, mesh: jax.sharding.Mesh
) -> Callable[..., UserRanks]:
    """`user_ranks(params, rows, with_best=False)`: ranks of every user's target in the catalogue.

    With `with_best` also the best 10 items, which costs about as much again as the ranks.
    """

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

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def best(
        params: dict, queries: Float[Array, "Q D"], seen: Int[Array, "Q S"]
    ) -> Int[Array, "Q 10"]:
        return best_items(
            queries,
            nnx.merge(graphdef, params).item_vectors(),
            seen,
            k=10,
            num_items=num_items,
            chunk_items=config.evaluate.chunk_items,
        )

    encode_on_mesh = sharding.on_mesh(mesh, encode)

    def one_batch(params: dict, batch: Batch, queries: Queries, with_best: bool) -> dict:
        batch = sharding.put_whole(batch, sharding.batch_sharding(mesh))
        asked = queries.token, queries.target, queries.seen
        token, target, seen = sharding.put_whole(asked, sharding.replicated(mesh))
        vectors = encode_on_mesh(params, batch, token)
        found = rank(params, vectors, target, seen)
        return found | {"best": best(params, vectors, seen)} if with_best else found

    def user_ranks(params: dict, rows: EvaluationBatches, with_best: bool = False) -> UserRanks:
        def ranked() -> Iterator[tuple[dict, Queries, Int[np.ndarray, " q"]]]:
            for index in range(len(rows)):
                batch, queries, users = rows.batch(index)
                yield one_batch(params, batch, queries, with_best), queries, users

        found = []
        for result, queries, users in one_behind(ranked()):
            n = len(users)
            rank = np.where(queries.is_left_out, np.inf, np.asarray(result["rank"]))
            columns = queries.target, rank, np.asarray(result["log_prob"])
            of_batch = (users, *(column[:n] for column in columns), rows.history(users))
            lists = np.asarray(result["best"])[:n] if with_best else np.zeros((0, 10), np.int32)
            found.append((*of_batch, lists))
        return UserRanks(*(np.concatenate(column) for column in zip(*found, strict=True)))

    return user_ranks


def summary(
    found: UserRanks, popularity: Float[np.ndarray, " X1"], at: tuple[int, ...] = ()
) -> dict[str, float]:
    """Metrics of a split: those of `metrics` and of `beyond_accuracy`.

    Args:
      found: the ranks; and the best items, if there are metrics of lists.
      popularity: training events of each item id.
      at: K of further metrics.
    """
    values = metrics.summarise(found.rank, found.log_prob, found.history, at)
    values |= beyond_accuracy.by_popularity(found.rank, found.target, popularity)
    lists = beyond_accuracy.of_lists(found.best, popularity) if len(found.best) else {}
    return values | lists
