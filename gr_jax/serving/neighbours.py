"""Items that are near one another, by the vectors that a retrieval model has of them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int32

from gr_jax.serving.index import ExactIndex


def item_vectors(index: ExactIndex) -> Float32[np.ndarray, "X D"]:
    """The vector of each item 1, 2, ..: a score is its product with that of a history."""
    return np.asarray(index.vectors)[1 : index.num_items + 1]


def similar_items(
    index: ExactIndex, items: Int32[np.ndarray, " B"], k: int
) -> tuple[Int32[np.ndarray, "B k"], Float32[np.ndarray, "B k"]]:
    """The k items whose vectors have the largest cosine with those of others, and the cosines.

    An item is not among its own; ids are 0 and cosines -inf where the catalogue has no more.
    """
    vectors = np.asarray(index.vectors)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = ExactIndex(vectors / np.maximum(length, 1e-6), num_items=index.num_items)
    return unit.search(np.asarray(unit.vectors)[items], k, removed=list(items[:, None]))
