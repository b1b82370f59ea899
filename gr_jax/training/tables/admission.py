"""The map from items to rows of the item table as a part of the training state, and how it changes while training.

With `vocabulary.kind="hashed"` it is fixed. With "admitted" an item starts on shared rows, which its hashes choose, and
may own a row once `admit_after` steps have named it, as a token or a label. The rules, applied by the host after every
`update_every` steps to counts that the steps keep on the device:

1. An item that the last `evict_after` steps did not name is forgotten: its count begins anew at 0, and a row that it
   owns is free again. Its vector is that of its shared rows from then on.
2. Free rows go, the lowest first, to items without one whose count has reached `admit_after`: those with the highest
   counts first, of equal counts the smaller id. When no row is free the others wait; nobody is evicted for them.

A row that is handed out starts as the vector that its new owner had, so that at this moment no output changes; a row
that waits is 0. The optimizer's moments of both are 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Int32

from gr_jax.config import Config, VocabularyConfig
from gr_jax.data.batches.batch import Batch, Impressions
from gr_jax.models.embeddings import table_rows
from gr_jax.models.lookup import ambient_devices
from gr_jax.models.vocabulary import catalogue_table, item_vectors
from gr_jax.training import sharding
from gr_jax.training.tables.batch_entries import number

if TYPE_CHECKING:
    from gr_jax.data.dataset import Dataset
    from gr_jax.training.state import TrainState

# rows [X1, k]: of each item, 0 = none; seen [X1]: steps that named it; last [X1]: the number of the last of them, from
# 1. The last two for kind="admitted" alone. X1 as of `table_rows`.
Vocabulary = dict[str, Any]

# Fields of a batch whose items are counted: what users took, and no negatives.
COUNTED = ("item", "label", "history_item")


def initial(config: Config, dataset: Dataset) -> Vocabulary | None:
    """The map before the first step, on the host; None for kind="catalogue", where the row of an item is its id."""
    vocabulary = config.vocabulary
    if vocabulary.kind == "catalogue":
        return None
    from gr_jax.data import hashing  # with polars, which a step does without

    rows = np.zeros((table_rows(dataset.num_items), vocabulary.hashes), np.int32)
    row, _ = hashing.rows_of_items(dataset.catalogue.items["raw"], vocabulary, seed=config.seed)
    rows[1 : dataset.num_items + 1] = row
    if vocabulary.kind == "hashed":
        return {"rows": rows}
    return {
        "rows": rows,
        "seen": np.zeros(len(rows), np.int32),
        "last": np.zeros(len(rows), np.int32),
    }


def shapes(config: VocabularyConfig, num_items: int) -> Vocabulary | None:
    """Shapes and dtypes of `initial` for a catalogue of so many items."""
    if config.kind == "catalogue":
        return None
    items = table_rows(num_items)
    names = ("seen", "last") if config.kind == "admitted" else ()
    counts = {name: jax.ShapeDtypeStruct((items,), jnp.int32) for name in names}
    return {"rows": jax.ShapeDtypeStruct((items, config.hashes), jnp.int32)} | counts


def with_item_table(params: dict, table: Array) -> dict:
    """The parameters with this item table."""
    return params | {"embeddings": params["embeddings"] | {"item_table": table}}


def catalogue_params(params: dict, vocabulary: Vocabulary | None) -> dict:
    """The parameters with the vectors of the catalogue, row = item id, as their item table."""
    if vocabulary is None:
        return params
    return with_item_table(
        params, catalogue_table(params["embeddings"]["item_table"], vocabulary["rows"])
    )


def entries_of_items(
    vocabulary: Vocabulary, item: Int[Array, "*S U"], size: int
) -> tuple[Int[Array, "*S V"], Int[Array, "*S U k"]]:
    """Distinct entries of items, ascending as of `renumber`, and the places of each item's entries in these.

    item: ids, some beyond the catalogue, which have no entry. size: entries of the table.
    """
    own = vocabulary["rows"].at[item].get(mode="fill", fill_value=0)
    distinct, place = number({"own": own}, size, len(item) if item.ndim == 2 else None)
    return distinct, place["own"]


def vectors_of_items(
    entries: Float[Array, "*S V D"], place: Int[Array, "*S U k"]
) -> Float[Array, "*S U D"]:
    """Vectors of the items of `entries_of_items`, from the entries that were looked up."""
    return (item_vectors if entries.ndim == 2 else jax.vmap(item_vectors))(entries, place)


def count_items(
    vocabulary: Vocabulary | None, batch: Batch | Impressions, step: Int[Array, ""]
) -> Vocabulary | None:
    """The vocabulary after a step that saw `batch`, `step` being the steps before it."""
    if vocabulary is None or "seen" not in vocabulary:
        return vocabulary
    fields = (getattr(batch, name, None) for name in COUNTED)
    item = jnp.concatenate([ids.reshape(-1) for ids in fields if ids is not None])
    if ambient_devices():
        # ids to every device, so that each counts all of them; counts need not travel
        item = jax.lax.with_sharding_constraint(item, PartitionSpec())
    seen, last = vocabulary["seen"], vocabulary["last"]
    # All of an item's places write the same number: it counts once a step.
    return vocabulary | {
        "seen": seen.at[item].set(seen[item] + 1),
        "last": last.at[item].set(step + 1),
    }


@dataclass(frozen=True)
class Revision:
    """What a moment of giving and taking changes."""

    vocabulary: dict[str, np.ndarray]  # after it
    # rows that change hands: those handed out, then those that wait again
    row: Int32[np.ndarray, " C"]
    source: Int32[np.ndarray, "C k"]  # shared rows of the new owner of each, 0 = none
    evicted: int  # items
    admitted: int
    waiting: int  # items that have earned a row and get none


def revise(
    vocabulary: dict[str, np.ndarray],
    shared: Int32[np.ndarray, "X1 k"],
    config: VocabularyConfig,
    *,
    step: int,
) -> Revision:
    """The rules of the module docstring after `step` steps; `shared` are the rows that the hashes chose."""
    rows, seen, last = (np.array(vocabulary[name]) for name in ("rows", "seen", "last"))
    seen[0] = last[0] = 0  # padding
    first_own = config.shared_rows + 1
    forgotten = (seen > 0) & (step - last >= config.evict_after) & (config.evict_after > 0)
    seen[forgotten] = 0
    evicted = np.flatnonzero(forgotten & (rows[:, 0] >= first_own))
    given_back = rows[evicted, 0]
    rows[evicted] = shared[evicted]
    owns = rows[:, 0] >= first_own
    is_free = np.ones(config.rows, bool)
    is_free[rows[owns, 0] - first_own] = False
    free = first_own + np.flatnonzero(is_free)
    earned = np.flatnonzero((seen >= config.admit_after) & ~owns)
    admitted = earned[np.lexsort((earned, -seen[earned]))][: len(free)]
    taken = free[: len(admitted)].astype(np.int32)
    rows[admitted], rows[admitted, 0] = 0, taken
    waits_again = np.setdiff1d(given_back, taken)
    row = np.concatenate([taken, waits_again]).astype(np.int32)
    source = np.concatenate(
        [shared[admitted], np.zeros((len(waits_again), shared.shape[1]), np.int32)]
    )
    after = {"rows": rows, "seen": seen, "last": last}
    return Revision(after, row, source, len(evicted), len(admitted), len(earned) - len(admitted))


def moved(
    state: TrainState, vocabulary: Vocabulary, row: Int[Array, " C"], source: Int[Array, "C k"]
) -> TrainState:
    """`state` with this vocabulary, the rows that change hands started anew; arguments as of `Revision`."""
    table = state.params["embeddings"]["item_table"]
    started = item_vectors(table, source).astype(table.dtype)
    params = with_item_table(state.params, table.at[row].set(started, mode="drop"))

    def without_moments(path: tuple, leaf: Array) -> Array:
        return (
            leaf.at[row].set(0, mode="drop") if "item_table" in sharding.path_name(path) else leaf
        )

    opt_state = jax.tree_util.tree_map_with_path(without_moments, state.opt_state)
    return replace(state, params=params, opt_state=opt_state, vocabulary=vocabulary)


def make_update(
    config: VocabularyConfig,
    first: Vocabulary | None,
    shardings: TrainState,
    mesh: jax.sharding.Mesh,
) -> Callable[[TrainState, int], tuple[TrainState, Revision | None]]:
    """`update(state, step) -> state, what changed`: gives and takes rows when `step` is such a moment.

    Args:
      config: of the vocabulary.
      first: the vocabulary of step 0.
      shardings: of the state.
      mesh: on which the state lies.
    """
    move = sharding.on_mesh(mesh, jax.jit(moved, donate_argnums=0, out_shardings=shardings))

    def update(state: TrainState, step: int) -> tuple[TrainState, Revision | None]:
        if config.kind != "admitted" or step % config.update_every:
            return state, None
        assert first is not None
        revision = revise(
            jax.tree.map(np.asarray, state.vocabulary), first["rows"], config, step=step
        )
        table = len(state.params["embeddings"]["item_table"])
        room = (1 << max(7, (len(revision.row) - 1).bit_length())) - len(
            revision.row
        )  # few shapes are compiled
        row = np.pad(revision.row, (0, room), constant_values=table)
        source = np.pad(revision.source, ((0, room), (0, 0)))
        return move(state, revision.vocabulary, row, source), revision

    return update


@functools.cache
def catalogue_maker(mesh: jax.sharding.Mesh) -> Callable[[TrainState], dict]:
    """`catalogue_params` of a state on `mesh`; the same arrays where the vocabulary is the catalogue."""
    make = sharding.on_mesh(mesh, jax.jit(catalogue_params))
    return lambda state: (
        state.params if state.vocabulary is None else make(state.params, state.vocabulary)
    )
