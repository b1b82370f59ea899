"""The map from items to entries of the item table, part of the training state, and its revision.

With `vocabulary.kind="hashed"` the map is fixed. With "admitted" an item starts on shared entries,
which its hashes choose, and may own an entry once `admit_after` steps have named it, as a token or
a label. The host applies these rules after every `update_every` steps, to counts that the steps
keep on the device:

1. An item that the last `evict_after` steps did not name is forgotten: its count restarts at 0, and
   an entry that it owns is free again. From then on its vector is that of its shared entries.
2. Free entries go, the lowest first, to items without one whose count has reached `admit_after`:
   the highest counts first, of equal counts the smaller id. When no entry is free the other items
   wait; none is evicted for them.

An entry that is handed out starts as the vector that its new owner had, so that at this moment no
output changes; an entry that waits is 0. The optimizer's moments of both are 0.
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
from gr_jax.models.embeddings import table_entries
from gr_jax.models.lookup import ambient_devices
from gr_jax.models.vocabulary import catalogue_table, item_vectors
from gr_jax.training import sharding
from gr_jax.training.tables.batch_entries import number

if TYPE_CHECKING:
    from gr_jax.data.dataset import Dataset
    from gr_jax.training.state import TrainState

# rows [X1, k]: entries of each item, 0 = none; seen [X1]: steps that named it; last [X1]: the
# number of the last of them, from 1. The last two for kind="admitted" alone. X1 as of
# `table_entries`.
Vocabulary = dict[str, Any]

# Fields of a batch whose items are counted: what users took, and no negatives.
COUNTED = ("item", "label", "history_item")


def initial(config: Config, dataset: Dataset, *, devices: int = 1) -> Vocabulary | None:
    """The map before the first step, on the host.

    None for kind="catalogue", where the entry of an item is its id.
    """
    vocabulary = config.vocabulary
    if vocabulary.kind == "catalogue":
        return None
    from gr_jax.data import hashing  # with polars, which a step does without

    items = table_entries(dataset.num_items, devices)
    rows = np.zeros((items, vocabulary.hashes), np.int32)
    row, _ = hashing.rows_of_items(dataset.catalogue.items["raw"], vocabulary, seed=config.seed)
    rows[1 : dataset.num_items + 1] = row
    if vocabulary.kind == "hashed":
        return {"rows": rows}
    return {
        "rows": rows,
        "seen": np.zeros(len(rows), np.int32),
        "last": np.zeros(len(rows), np.int32),
    }


def shapes(config: VocabularyConfig, num_items: int, *, devices: int = 1) -> Vocabulary | None:
    """Shapes and dtypes of `initial` for a catalogue of `num_items` items."""
    if config.kind == "catalogue":
        return None
    items = table_entries(num_items, devices)
    names = ("seen", "last") if config.kind == "admitted" else ()
    counts = {name: jax.ShapeDtypeStruct((items,), jnp.int32) for name in names}
    return {"rows": jax.ShapeDtypeStruct((items, config.hashes), jnp.int32)} | counts


def with_item_table(params: dict, table: Array) -> dict:
    """The parameters with this item table."""
    return params | {"embeddings": params["embeddings"] | {"item_table": table}}


def catalogue_params(params: dict, vocabulary: Vocabulary | None) -> dict:
    """The parameters with the vectors of the catalogue, by item id, as their item table."""
    if vocabulary is None:
        return params
    return with_item_table(
        params, catalogue_table(params["embeddings"]["item_table"], vocabulary["rows"])
    )


def entries_of_items(
    vocabulary: Vocabulary, item: Int[Array, "*S U"], size: int
) -> tuple[Int[Array, "*S V"], Int[Array, "*S U k"]]:
    """Distinct entries of items, and the places of each item's entries in these.

    The distinct entries are ascending and filled up as those of `batch_entries.renumber`.

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
    """The vocabulary after a step on `batch`, which is preceded by `step` steps."""
    if vocabulary is None or "seen" not in vocabulary:
        return vocabulary
    fields = (getattr(batch, name, None) for name in COUNTED)
    item = jnp.concatenate([ids.reshape(-1) for ids in fields if ids is not None])
    if ambient_devices():
        # Ids to every device, so that each counts all of them; counts need not travel.
        item = jax.lax.with_sharding_constraint(item, PartitionSpec())
    seen, last = vocabulary["seen"], vocabulary["last"]
    # All of an item's places write the same number: it counts once a step.
    return vocabulary | {
        "seen": seen.at[item].set(seen[item] + 1),
        "last": last.at[item].set(step + 1),
    }


@dataclass(frozen=True)
class Revision:
    """The changes of one application of the rules."""

    vocabulary: dict[str, np.ndarray]  # after it
    # entries that change hands: those handed out, then those that wait again
    entry: Int32[np.ndarray, " C"]
    source: Int32[np.ndarray, "C k"]  # shared entries of the new owner of each, 0 = none
    evicted: int  # items
    admitted: int
    waiting: int  # items that have earned an entry and get none


def revise(
    vocabulary: dict[str, np.ndarray],
    shared: Int32[np.ndarray, "X1 k"],
    config: VocabularyConfig,
    *,
    step: int,
) -> Revision:
    """Apply the rules of the module docstring after `step` steps.

    shared: the entries of each item that its hashes choose.
    """
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
    entry = np.concatenate([taken, waits_again]).astype(np.int32)
    source = np.concatenate(
        [shared[admitted], np.zeros((len(waits_again), shared.shape[1]), np.int32)]
    )
    after = {"rows": rows, "seen": seen, "last": last}
    waiting = len(earned) - len(admitted)
    return Revision(after, entry, source, len(evicted), len(admitted), waiting)


def moved(
    state: TrainState, vocabulary: Vocabulary, entry: Int[Array, " C"], source: Int[Array, "C k"]
) -> TrainState:
    """`state` with this vocabulary, the entries that change hands restarted.

    Arguments as of `Revision`.
    """
    table = state.params["embeddings"]["item_table"]
    started = item_vectors(table, source).astype(table.dtype)
    params = with_item_table(state.params, table.at[entry].set(started, mode="drop"))

    def without_moments(path: tuple, leaf: Array) -> Array:
        return (
            leaf.at[entry].set(0, mode="drop") if "item_table" in sharding.path_name(path) else leaf
        )

    opt_state = jax.tree_util.tree_map_with_path(without_moments, state.opt_state)
    return replace(state, params=params, opt_state=opt_state, vocabulary=vocabulary)


def make_update(
    config: VocabularyConfig,
    first: Vocabulary | None,
    shardings: TrainState,
    mesh: jax.sharding.Mesh,
) -> Callable[[TrainState, int], tuple[TrainState, Revision | None]]:
    """`update(state, step) -> state, revision`: apply the rules after every `update_every` steps.

    At other steps the revision is None.

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

        # Padded to a power of two, so that few shapes are compiled.
        changes, table = len(revision.entry), len(state.params["embeddings"]["item_table"])
        room = (1 << max(7, (changes - 1).bit_length())) - changes
        entry = np.pad(revision.entry, (0, room), constant_values=table)
        source = np.pad(revision.source, ((0, room), (0, 0)))
        return move(state, revision.vocabulary, entry, source), revision

    return update


@functools.cache
def catalogue_maker(mesh: jax.sharding.Mesh) -> Callable[[TrainState], dict]:
    """`make(state)`: its `catalogue_params` on `mesh`.

    The same arrays where the vocabulary is the catalogue.
    """
    make = sharding.on_mesh(mesh, jax.jit(catalogue_params))
    return lambda state: (
        state.params if state.vocabulary is None else make(state.params, state.vocabulary)
    )
