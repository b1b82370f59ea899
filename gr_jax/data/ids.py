"""Raw ids and values as integer codes, in a fixed order."""

from __future__ import annotations

import numpy as np
import polars as pl


def encode(raw: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """int32 codes 0.. of the values, and their distinct strings, in numeric order if all are integers."""
    distinct = in_order(raw.unique())
    table = pl.DataFrame({"raw": distinct, "code": np.arange(len(distinct), dtype=np.int32)})
    codes = raw.to_frame("raw").join(table, on="raw", how="left", maintain_order="left")["code"]
    return codes.to_numpy(), distinct.cast(pl.String)


def in_order(distinct: pl.Series) -> pl.Series:
    """Distinct values in numeric order if all are integers, else sorted as text."""
    number = distinct.cast(pl.Int64, strict=False) if distinct.dtype == pl.String else distinct
    # "007" and "7" are two ids, so digits that do not print back the same sort as text.
    if not number.null_count() and (number.cast(pl.String) == distinct.cast(pl.String)).all():
        return distinct.gather(number.arg_sort())
    return distinct.sort()


def compact(code: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes renumbered without gaps, and the old codes that are left, ascending."""
    present = np.bincount(code, minlength=size) > 0
    return (np.cumsum(present) - 1).astype(np.int32)[code], np.flatnonzero(present)
