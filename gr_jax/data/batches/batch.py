"""The inputs of a step: packed rows of tokens or impressions, and what an evaluation asks of them.

Imports neither Grain nor polars: a training step needs this module where neither is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from gr_jax.data.batches.packing import padded

if TYPE_CHECKING:
    from jax import Array
else:
    Array = jax.Array | np.ndarray  # numpy on the host, until `training.sharding.put`


ADDED_ROW = 2**31 - 1  # number of an empty row that one device would not have


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Packed rows of tokens; padding holds 0 everywhere. Fields that a run does not use are None.

    A token is an item, an action, an item with an action, or a feature value (Zhai et al. 2024,
    table 1).
    """

    item: Int[Array, "R L"]  # item id, 1 to X; 0 where the token names none
    time: Int[Array, "R L"]  # seconds since the first event of the sequence
    # seconds, of the event to predict: the one after the token, in ranking its own
    query_time: Int[Array, "R L"]
    position: Int[Array, "R L"]  # 0 for the oldest token of a sequence
    segment: Int[Array, "R L"]  # which sequence of the row a token belongs to, from 1; 0 = padding
    label: Int[Array, "R L"] | None = None  # retrieval: item id to predict; 0 = none
    # 0 = no action; else 1 + 2 * bits, bit i = meta["actions"][i]
    action: Int[Array, "R L"] | None = None
    item_features: Int[Array, "R L F"] | None = None  # feature values of the item, 0-padded
    # value of a user attribute or slow series; 0 = the token is none
    user_feature: Int[Array, "R L"] | None = None
    target: Bool[Array, "R L"] | None = None  # candidate tokens
    outcome: Float[Array, "R L Y"] | None = None  # ranking: what happened at the event, by task
    # 1 = the outcome is a label, 0 = it is not
    outcome_weight: Float[Array, "R L Y"] | None = None
    # number of each row in the batch of one device, where rows are in an order of their own for
    # several, or ADDED_ROW; noise follows it (`models.noise`)
    row: Int[Array, " R"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Impressions:
    """Single events with the history before each, for ranking without sequences; 0-padded."""

    item: Int[Array, " B"]  # item id of the event, 1 to X; 0 = padding
    # user attributes in fixed places, then the latest values of slow series
    user_features: Int[Array, "B C"] | None
    history_item: Int[Array, "B N"]  # events before, oldest first; 0 = none
    history_action: Int[Array, "B N"]  # 1 + 2 * bits, as in `Batch.action`; 0 = none
    history_age: Int[Array, "B N"]  # seconds from each to the event
    outcome: Float[Array, "B Y"]  # what happened, by task
    outcome_weight: Float[Array, "B Y"]  # 1 = the outcome is a label, 0 = it is not
    # Feature values of the whole catalogue, entry = item id, 0-padded to the size of its table: a
    # batch has far more events than the catalogues of this kind of model have items.
    catalogue_features: Int[Array, "*S rows F"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Queries:
    """Held-out events of a batch of retrieval: which token asks, and for which item; 0-padded."""

    token: Int[Array, " Q"]  # row * L + column of the last token of each sequence
    target: Int[Array, " Q"]  # held-out item id; 0 = no query
    seen: Int[Array, "Q S"]  # item ids that are not ranked, in any order

    @property
    def is_left_out(self) -> Bool[Array, " Q"]:
        """True where the target itself is not ranked: no list that is served has it."""
        return (self.seen == self.target[:, None]).any(axis=1) & (self.target > 0)


@dataclass(frozen=True)
class Labels:
    """The events of a batch of ranking whose outcomes are evaluated, T of them."""

    # where the prediction is: row * L + column, or index of the impression
    place: Int[np.ndarray, " T"]
    user: Int[np.ndarray, " T"]  # whose event it is
    history: Int[np.ndarray, " T"]  # events of the user before it, visible or not
    outcome: Float32[np.ndarray, "T Y"]  # what happened, by task
    known: Float32[np.ndarray, "T Y"]  # 1 where that is known, else 0


@dataclass(frozen=True)
class Share:
    """The part of every batch that a process holds: number `index` of `count` equal parts."""

    index: int = 0
    count: int = 1
    # Empty rows fill a batch up to a multiple of this, the `data` axis of the mesh; it is itself a
    # multiple of `count`.
    device_multiple: int = 1

    def of(self, batch_rows: int) -> tuple[int, int, int]:
        """First row of the part, the row after its last real one, and its size with empty rows."""
        size = padded(batch_rows, self.device_multiple) // self.count
        first = min(self.index * size, batch_rows)
        return first, min(first + size, batch_rows), size


WHOLE = Share()
