"""What a step sees: packed rows of tokens, and the questions asked of them in an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    from jax import Array
else:
    Array = jax.Array | np.ndarray  # numpy on the host, until `training.sharding.put`


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Packed rows of tokens; padding holds 0 everywhere. What a run does not use is None.

    A token is an item, an action, an item with an action, or a feature value (Zhai et al. 2024, table 1).
    """

    item: Int[Array, "R L"]  # item id, 1 to X; 0 where the token names none
    time: Int[Array, "R L"]  # seconds since the first event of the sequence
    # seconds, of the event to predict: the one after the token; in ranking its own
    query_time: Int[Array, "R L"]
    position: Int[Array, "R L"]  # 0 for the oldest token of a sequence
    segment: Int[Array, "R L"]  # which sequence of the row a token belongs to, from 1; 0 = padding
    label: Int[Array, "R L"] | None = None  # retrieval: item id to predict; 0 = none
    # 0 = tells no action; else 1 + 2 * bits, bit i = meta["actions"][i]
    action: Int[Array, "R L"] | None = None
    side: Int[Array, "R L F"] | None = None  # feature values of the item, 0-padded
    # value of a user attribute or slow series; 0 = the token is none
    feature: Int[Array, "R L"] | None = None
    target: Bool[Array, "R L"] | None = None  # candidate tokens
    outcome: Float[Array, "R L Y"] | None = None  # ranking: what happened at this event, by task
    outcome_weight: Float[Array, "R L Y"] | None = None  # 1 = the outcome is a label, 0 = it is not


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Impressions:
    """Single events with the history before each: what a ranking model without sequences trains on; padded with 0."""

    item: Int[Array, " B"]  # item id to judge, 1 to X; 0 = padding
    feature: (
        Int[Array, "B C"] | None
    )  # user attributes in fixed places, then the latest values of slow series
    history_item: Int[Array, "B N"]  # events before, oldest first; 0 = none
    history_action: Int[Array, "B N"]  # 1 + 2 * bits, as in `Batch.action`; 0 = none
    history_age: Int[Array, "B N"]  # seconds from each to the event to judge
    outcome: Float[Array, "B Y"]  # what happened, by task
    outcome_weight: Float[Array, "B Y"]  # 1 = the outcome is a label, 0 = it is not
    # Of the whole catalogue, row = item id: a batch has far more events than a catalogue for this kind of model items.
    # feature values of each item, 0-padded, as many rows as its table
    item_side: Int[Array, "*S rows F"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Queries:
    """The held-out events of one batch: which token asks, what the answer is, what was seen before; padded with 0."""

    token: Int[Array, " Q"]  # row * L + column of the last token of each sequence
    target: Int[Array, " Q"]  # held-out item id; 0 = no query
    seen: Int[Array, "Q S"]  # item ids that are not ranked, in any order
