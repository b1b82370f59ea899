"""Files of raw ids that people have: one a line, or a column of a CSV or Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from gr_jax.config import ConfigError
from gr_jax.data.log import tables


def read_ids(file: Path, columns: Sequence[str]) -> pl.Series:
    """The ids in a file as text, each once, in its order.

    Args:
      columns: names that the column of the ids may have; a file of one column needs none of them.

    Raises:
      ConfigError: it cannot be read, has several columns and none with these names, or no id.
    """
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    there = tables.columns(file)
    named = [name for name in columns if name in there]
    is_parquet = tables.is_parquet(file)
    if not named and len(there) > 1:
        shown = ", ".join(map(repr, there[:20]))
        wanted = " or ".join(map(repr, dict.fromkeys(columns)))
        raise ConfigError(f"{file}: no column {wanted} among {shown}")
    if named or is_parquet:
        name = named[0] if named else there[0]
        ids = tables.read(file, {name: "column"})[name]
    else:
        ids = pl.Series(
            "raw", file.read_text(encoding="utf-8").splitlines(), pl.String
        ).str.strip_chars()
    ids = ids.filter(ids.fill_null("") != "").unique(maintain_order=True)
    if not len(ids):
        raise ConfigError(f"{file}: no ids in it")
    return ids.alias("raw")
