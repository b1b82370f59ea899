"""What a step sees: packed rows of tokens, and the questions asked of them in an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from jax import Array
else:
    Array = jax.Array | np.ndarray  # numpy on the host, until `training.sharding.put`


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Packed rows of tokens; padding holds 0 everywhere."""

    item: Int[Array, "R L"]  # item id, 1 to X
    time: Int[Array, "R L"]  # seconds since the first event of the sequence
    query_time: Int[Array, "R L"]  # seconds, of the event to predict: the one after the token
    position: Int[Array, "R L"]  # 0 for the oldest token of a sequence
    segment: Int[Array, "R L"]  # which sequence of the row a token belongs to, from 1; 0 = padding
    label: Int[Array, "R L"]  # item id to predict; 0 = none


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Queries:
    """The held-out events of one batch: which token asks, what the answer is, what was seen before; padded with 0."""

    token: Int[Array, " Q"]  # row * L + column of the last token of each sequence
    target: Int[Array, " Q"]  # held-out item id; 0 = no query
    seen: Int[Array, "Q S"]  # item ids that are not ranked, in any order
