"""The items that a model would recommend: the best of the catalogue for each query."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def best_items(
    queries: Float[Array, "Q D"],
    items: Float[Array, "entries D"],
    seen: Int[Array, "Q S"],
    *,
    k: int,
    num_items: int,
    chunk_items: int,
) -> Int[Array, "Q {k}"]:
    """The k item ids of 1..num_items with the highest dot products, best first; ties by id.

    Scores of [Q, chunk_items] are the most that is in memory.

    Args:
      queries, items: vectors; entry i of `items` is that of item i, others are padding.
      seen: ids that are left out, in any order, with repeats; 0 = none.
      k, num_items, chunk_items: as said.

    Returns:
      Ids; 0 where fewer than k items are left.
    """
    entries, chunk = items.shape[0], min(chunk_items, items.shape[0])
    of_query = jnp.arange(len(queries))[:, None]
    queries = queries.astype(jnp.float32)

    def step(index, best):
        # The last chunk reaches back, not past the end; what it repeats is left out.
        first = jnp.minimum(index * chunk, entries - chunk)
        part = jax.lax.dynamic_slice_in_dim(items, first, chunk)
        scores = jnp.matmul(queries, part.T, precision=jax.lax.Precision.HIGHEST)

        ids = first + jnp.arange(chunk)
        is_new = (ids >= jnp.maximum(index * chunk, 1)) & (ids <= num_items)
        scores = jnp.where(is_new, scores, -jnp.inf)
        here = (seen >= first) & (seen < first + chunk)
        place = jnp.where(here, seen - first, chunk)  # beyond the end: dropped
        scores = scores.at[of_query, place].set(-jnp.inf, mode="drop")

        top, place = jax.lax.top_k(scores, min(k, chunk))
        scores, found = (
            jnp.concatenate(both, axis=1) for both in zip(best, (top, ids[place]), strict=True)
        )
        top, place = jax.lax.top_k(scores, k)
        return top, jnp.take_along_axis(found, place, axis=1)

    none = jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32)
    top, found = jax.lax.fori_loop(0, -(-entries // chunk), step, none)
    return jnp.where(top > -jnp.inf, found, 0)
