"""The rows of the tables that a batch touches, and the batch told in numbers of these rows.

A training step looks these rows up once. To the model they are its tables, small ones, so the gradient of a table is
[rows touched, D] and nothing in the step is as large as the catalogue.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from gr_jax.data.batches.batch import Batch, Impressions

# Fields of batches that hold row numbers, by table. A DLRM's features of items come with the items.
FIELDS = {
    "item_table": ("item", "label", "history_item"),
    "feature_table": ("item_features", "user_feature", "user_features"),
}


@dataclasses.dataclass(frozen=True)
class Touched:
    """What a batch touches; S parts of the batch, one for each group of devices along `data`, are told apart."""

    batch: Batch | Impressions  # row numbers count from 0 in the rows of the batch's part
    negatives: Int[Array, "R G K"] | None  # likewise
    # by table: strictly ascending, 0 first, numbers beyond the table last
    rows: dict[str, Int[Array, "S U"]]


def touched(
    batch: Batch | Impressions,
    negatives: Int[Array, "R G K"] | None,
    sizes: dict[str, int],
    *,
    parts: int,
) -> Touched:
    """The rows that `batch` and `negatives` name, of tables with `sizes` rows; U is the most they can be.

    Padding, 0, stays 0.
    """
    rows, changed = {}, {}
    for table, size in sizes.items():
        held = {name: getattr(batch, name, None) for name in FIELDS[table]}
        if table == "item_table":
            held["negatives"] = negatives
        elif isinstance(batch, Impressions) and batch.catalogue_features is not None:
            held["catalogue_features"] = batch.catalogue_features.at[rows["item_table"]].get(
                mode="clip"
            )
        held = {name: ids for name, ids in held.items() if ids is not None}
        rows[table], fields = numbered(held, size, parts)
        changed |= fields
    negatives = changed.pop("negatives", None)
    return Touched(dataclasses.replace(batch, **changed), negatives, rows)


def numbered(
    held: dict[str, Array], size: int, parts: int
) -> tuple[Int[Array, "S U"], dict[str, Array]]:
    """Distinct ids of all arrays together in each part, 0 first, and the arrays with numbers of these."""
    flat = [jnp.zeros((parts, 1), jnp.int32)] + [ids.reshape(parts, -1) for ids in held.values()]
    ids = jnp.concatenate(flat, axis=1)
    count = min(ids.shape[1], size)
    distinct, number = jax.vmap(lambda ids: distinct_ids(ids, count, size))(ids)
    ends = [1]
    for ids in flat[1:]:
        ends.append(ends[-1] + ids.shape[1])
    cut = {name: number[:, a:b] for name, a, b in zip(held, ends[:-1], ends[1:], strict=True)}
    return distinct, {name: cut[name].reshape(ids.shape) for name, ids in held.items()}


def distinct_ids(
    ids: Int[Array, " T"], count: int, beyond: int
) -> tuple[Int[Array, " U"], Int[Array, " T"]]:
    """The at most `count` distinct ids, strictly ascending, filled up with numbers of at least `beyond`.

    Returns:
      These, and the place of each of `ids` in them. No id is above `beyond`.
    """
    ordered = jnp.sort(ids)
    is_first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    place = jnp.where(is_first, jnp.cumsum(is_first) - 1, count)
    distinct = (beyond + jnp.arange(count, dtype=ids.dtype)).at[place].set(ordered, mode="drop")
    # Searching is cheaper than an argsort, which takes most of the time of `jnp.unique`.
    return distinct, jnp.searchsorted(distinct, ids).astype(jnp.int32)
