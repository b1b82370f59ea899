"""Distinct ids of a batch by table, and the batch renumbered to count in these.

A training step with row-wise tables looks these entries up once. To the model they are its tables,
small ones, so the gradient of a table is [entries of the batch, D] and nothing in the step is as
large as the catalogue.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from gr_jax.data.batches.batch import Batch, Impressions

Inputs = TypeVar("Inputs", bound=Batch | Impressions)

# Fields of a batch, or of what a loss adds to one, that hold ids, by table.
FIELDS = {
    "item_table": ("item", "label", "history_item", "negatives"),
    "feature_table": ("item_features", "user_feature", "user_features", "catalogue_features"),
}
# Fields with a value for each item of the catalogue; only those of the batch's items are kept.
FIELDS_BY_ITEM = ("catalogue_features", "item_log_q")


def renumber(
    inputs: Inputs, sizes: dict[str, int], *, parts: int | None
) -> tuple[dict[str, Int[Array, "*S U"]], Inputs]:
    """Distinct ids of `inputs` by table, and `inputs` with each id replaced by its place in these.

    Padding, 0, stays 0.

    Args:
      inputs: fields as of `FIELDS` and `FIELDS_BY_ITEM`; any of them may be absent or None.
      sizes: ids of each table, padding included; in the order of `FIELDS`.
      parts: S equal parts of the first axis of `inputs`, each numbered by itself; None = all as
        one, without the axis S.

    Returns:
      ids: strictly ascending, 0 first, filled up with numbers beyond the table. U is the number of
        ids named, with repeats and 0, or the size if that is smaller.
      inputs: renumbered; fields by item are [*S, U, ...].
    """
    ids = {}
    for table, size in sizes.items():
        held = {name: getattr(inputs, name, None) for name in FIELDS[table]}
        held = {name: field for name, field in held.items() if field is not None}
        ids[table], fields = number(held, size, parts)
        if table == "item_table":
            by_item = {name: getattr(inputs, name, None) for name in FIELDS_BY_ITEM}
            fields |= {
                name: field.at[ids[table]].get(mode="clip")
                for name, field in by_item.items()
                if field is not None
            }
        inputs = dataclasses.replace(inputs, **fields)
    return ids, inputs


def number(
    held: dict[str, Array], size: int, parts: int | None
) -> tuple[Int[Array, "*S U"], dict[str, Array]]:
    """Distinct ids of all arrays together, with 0, and the arrays with places in these for ids."""
    lead = () if parts is None else (parts,)
    flat = [jnp.zeros((*lead, 1), jnp.int32)] + [ids.reshape(*lead, -1) for ids in held.values()]
    joined = jnp.concatenate(flat, axis=-1)
    count = min(joined.shape[-1], size)

    def of_part(ids: Int[Array, " T"]) -> tuple[Int[Array, " U"], Int[Array, " T"]]:
        return distinct_ids(ids, count, size)

    distinct, place = (of_part if parts is None else jax.vmap(of_part))(joined)
    ends = [1]
    for ids in flat[1:]:
        ends.append(ends[-1] + ids.shape[-1])
    cut = {name: place[..., a:b] for name, a, b in zip(held, ends[:-1], ends[1:], strict=True)}
    return distinct, {name: cut[name].reshape(ids.shape) for name, ids in held.items()}


def distinct_ids(
    ids: Int[Array, " T"], count: int, beyond: int
) -> tuple[Int[Array, " U"], Int[Array, " T"]]:
    """Distinct ids, at most `count`, and the place of each of `ids` in them.

    The distinct ids are strictly ascending, filled up with numbers of at least `beyond`. No id is
    above `beyond`.
    """
    ordered = jnp.sort(ids)
    is_first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    place = jnp.where(is_first, jnp.cumsum(is_first) - 1, count)
    distinct = (beyond + jnp.arange(count, dtype=ids.dtype)).at[place].set(ordered, mode="drop")
    # Searching is cheaper than an argsort, which takes most of the time of `jnp.unique`.
    return distinct, jnp.searchsorted(distinct, ids).astype(jnp.int32)
