"""Answers of a model as tables: in raw ids of the types that the log has, of the kind fit got."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, no_type_check

import numpy as np
import polars as pl
from jaxtyping import Float32, Int

from gr_jax.data import ids
from gr_jax.data.dataset import Dataset
from gr_jax.serving.trained import Trained

_IDS = 1 << 18  # read at once
LOG_FOLDER, EVENTS = "log", "events.parquet"  # in a workdir: the log of a run on a table


@no_type_check  # beartype stumbles over the class that polars has of types
class IdTypes(NamedTuple):
    """Types of raw ids in tables."""

    user: pl.DataType
    item: pl.DataType


def id_types(dataset: Dataset, trained: Trained | None, newer: Dataset | None) -> IdTypes:
    """The types of raw ids: those of the table that the run is on.

    Of a run on a file, or of an export: integers if all are, else strings. The users may be those
    of a newer log, and are not of the table then.
    """
    file = trained.workdir / LOG_FOLDER / EVENTS if trained else None
    if trained is not None and file is not None and file.is_file():
        there = pl.read_parquet_schema(file)
        names = trained.config.data.user_column, trained.config.data.item_column
        if newer is None and all(name in there for name in names):
            return IdTypes(*(there[name] for name in names))
    users = (newer or dataset).catalogue.folder / "users.parquet"
    return IdTypes(_type_of(users), _type_of(dataset.catalogue.folder / "items.parquet"))


@no_type_check
def _type_of(file: Path) -> pl.DataType:
    """Integers if all raw ids in a file are, else strings; only some of them are in memory."""
    raw = pl.scan_parquet(file, glob=False).select("raw")
    for start in range(0, raw.select(pl.len()).collect().item(), _IDS):
        if not ids.are_integers(raw.slice(start, _IDS).collect()["raw"]):
            return pl.String()
    return pl.Int64()


def ranked(
    asked: pl.Series,
    raw_items: pl.Series,
    found: Int[np.ndarray, "B k"],
    scores: Float32[np.ndarray, "B k"],
    *,
    item: str = "item",
) -> pl.DataFrame:
    """A row for each item found: who asked, the item, its rank from 1 on and its score.

    Args:
      asked: one of each row of `found`; its name is that of the column.
      raw_items: of items 1, 2, ..
      found: item ids, best first; 0 = no more.
      item: name of the column of the items.
    """
    there = found > 0
    rank = np.broadcast_to(np.arange(1, found.shape[1] + 1, dtype=np.int32), found.shape)
    repeated = np.repeat(np.arange(len(asked)), there.sum(axis=1))
    return pl.DataFrame(
        [
            asked.gather(repeated),
            raw_items.gather(found[there] - 1).alias(item),
            pl.Series("rank", rank[there]),
            pl.Series("score", scores[there]),
        ]
    )


def with_vectors(asked: pl.Series, vectors: Float32[np.ndarray, "B D"]) -> pl.DataFrame:
    """A row for each vector: whose it is, by the name of `asked`, and `vector`."""
    kind = pl.Array(pl.Float32, vectors.shape[1])
    return pl.DataFrame([asked, pl.Series("vector", np.ascontiguousarray(vectors), kind)])
