"""Item-kNN as vectors, so that its scores can be added to those of a model by longer vectors.

A score of item-kNN is a sum over the items of a history of rows of the table of similarities. Cut
to a low rank, the table is a product of two, and the score a dot product of a vector of the history
and one of the item. What a model has learnt and what kNN counts are different things: on small logs
both together are better than either (`experiments/quality/small_logs.py`).
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int
from scipy.sparse.linalg import svds

from gr_jax.baselines import item_knn
from gr_jax.baselines.questions import Questions
from gr_jax.baselines.training_events import user_items
from gr_jax.config import ConfigError
from gr_jax.data.batches.splits import TrainingLog

FILE = "knn_vectors.npz"  # in a workdir
SHRINKAGE, RECENCY = 20.0, 0.8
DENSE = 1000  # items up to which the singular values are those of a dense table


@dataclass(frozen=True)
class KnnVectors:
    """Vectors of item-kNN: the score of a history and an item is `queries` times `items`."""

    read: Float32[np.ndarray, "X1 r"]  # of an item in a history
    items: Float32[np.ndarray, "X1 r"]  # of an item that is scored
    weight: float = 1.0  # of the scores, in units of the model's logits

    def queries(
        self,
        item: Int[np.ndarray, " E"],
        begin: Int[np.ndarray, " Q"],
        end: Int[np.ndarray, " Q"],
    ) -> Float32[np.ndarray, "Q r"]:
        """Vectors of histories, times the weight.

        Args:
          item: ids of events.
          begin, end: of each history in them.
        """
        asked = Questions(item, begin, begin, end, len(self.read) - 1)
        return np.asarray(asked.histories(RECENCY) @ (np.float32(self.weight) * self.read))


def learn(log: TrainingLog, rank: int) -> KnnVectors:
    """The vectors of a log, of the singular vectors of its similarities with the largest values.

    Args:
      log: the training events.
      rank: r; at most the number of items.
    """
    (table,) = item_knn.similarities(user_items(log), (SHRINKAGE,))
    table, rank = table.astype(np.float64), min(rank, log.num_items)
    if log.num_items <= max(DENSE, rank + 1):
        factors = np.linalg.svd(table.toarray())
    else:
        factors = svds(table, k=rank, v0=np.ones(log.num_items + 1))
    left, value, right = map(np.asarray, factors)
    order = np.argsort(-value)[:rank]
    root = np.sqrt(value[order])
    read, items = left[:, order] * root, right[order].T * root
    return KnnVectors(read.astype(np.float32), items.astype(np.float32))


def write(vectors: KnnVectors, workdir: Path) -> None:
    """Write them into a workdir, whole or not at all."""
    partial = workdir / f".{FILE}.partial.npz"
    np.savez(partial, read=vectors.read, items=vectors.items, weight=np.asarray(vectors.weight))
    os.replace(partial, workdir / FILE)


def read(workdir: Path, num_items: int) -> KnnVectors | None:
    """Those of a workdir; None if it has none.

    Raises:
      ConfigError: the file is damaged, or of another catalogue.
    """
    path = workdir / FILE
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file) as tables:
            found = KnnVectors(tables["read"], tables["items"], float(tables["weight"]))
        fits = found.read.shape == found.items.shape and len(found.read) == num_items + 1
        if not fits or not all(np.isfinite(table).all() for table in (found.read, found.items)):
            raise ValueError("of another catalogue, or not finite")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        told = "delete it, and train again with this workdir: no step is repeated"
        raise ConfigError(f"{path}: damaged ({error}); {told}") from None
    return found
