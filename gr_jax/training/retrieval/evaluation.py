"""Evaluation of a split over the full catalogue, batch by batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from gr_jax.baselines.knn_vectors import KnnVectors
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
    """`user_ranks(params, rows, with_best=False, knn=None)`: ranks of every user's target.

    With `with_best` also the best 10 items, which costs about as much again as the ranks. With
    `knn` its scores are added to those of the model.
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
        further: Float[Array, "entries r"] | None,
    ) -> dict:
        return metrics.target_ranks(
            queries,
            params["embeddings"]["item_table"],
            target,
            seen,
            num_items=num_items,
            temperature=config.model.temperature,
            chunk_items=config.evaluate.chunk_items,
            further=further,
        )

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def best(
        params: dict,
        queries: Float[Array, "Q D"],
        seen: Int[Array, "Q S"],
        further: Float[Array, "entries r"] | None,
    ) -> Int[Array, "Q 10"]:
        items = nnx.merge(graphdef, params).item_vectors()
        return best_items(
            queries,
            items if further is None else jnp.concatenate([items, further], axis=-1),
            seen,
            k=10,
            num_items=num_items,
            chunk_items=config.evaluate.chunk_items,
        )

    encode_on_mesh = sharding.on_mesh(mesh, encode)

    def one_batch(
        params: dict,
        batch: Batch,
        queries: Queries,
        with_best: bool,
        of_knn: tuple[np.ndarray, Array] | None,
    ) -> dict:
        batch = sharding.put_whole(batch, sharding.batch_sharding(mesh))
        asked = queries.token, queries.target, queries.seen
        token, target, seen = sharding.put_whole(asked, sharding.replicated(mesh))
        vectors, further = encode_on_mesh(params, batch, token), None
        if of_knn is not None:
            more, further = of_knn
            more = np.pad(more, [(0, len(vectors) - len(more)), (0, 0)])
            more = sharding.put_whole(more, sharding.replicated(mesh))
            vectors = jnp.concatenate([vectors, more], axis=-1)
        found = rank(params, vectors, target, seen, further)
        return found | {"best": best(params, vectors, seen, further)} if with_best else found

    def user_ranks(
        params: dict,
        rows: EvaluationBatches,
        with_best: bool = False,
        knn: KnnVectors | None = None,
    ) -> UserRanks:
        of_users = of_items = None
        if knn is not None:
            spans, entries = rows.spans, len(params["embeddings"]["item_table"])
            events = np.asarray(rows.dataset.events.item)
            of_users = knn.queries(events, spans.begin, spans.begin + spans.length)
            of_users = of_users * np.float32(config.model.temperature)  # of scores, not of logits
            of_items = np.pad(knn.items, [(0, entries - len(knn.items)), (0, 0)])
            of_items = sharding.put_whole(of_items, sharding.replicated(mesh))

        def ranked() -> Iterator[tuple[dict, Queries, Int[np.ndarray, " q"]]]:
            for index in range(len(rows)):
                batch, queries, users = rows.batch(index)
                of_knn = None
                if of_users is not None and of_items is not None:
                    of_knn = of_users[np.searchsorted(rows.spans.user, users)], of_items
                yield one_batch(params, batch, queries, with_best, of_knn), queries, users

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
