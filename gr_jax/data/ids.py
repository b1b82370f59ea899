"""Raw ids and values as integer codes, in a fixed order."""

from __future__ import annotations

import numpy as np
import polars as pl


def encode(raw: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """int32 codes 0.. of the values, and their distinct strings, in the order of `in_order`."""
    distinct = in_order(raw.unique())
    return codes(raw, distinct), distinct.cast(pl.String)


def codes(raw: pl.Series, distinct: pl.Series) -> np.ndarray:
    """int32 places of the values in `distinct`, which has them all."""
    table = pl.DataFrame({"raw": distinct, "code": np.arange(len(distinct), dtype=np.int32)})
    return (
        raw.to_frame("raw")
        .join(table, on="raw", how="left", maintain_order="left")["code"]
        .to_numpy()
    )


def in_order(distinct: pl.Series) -> pl.Series:
    """Distinct values in numeric order if all are integers, else sorted as text."""
    return distinct.gather(arg_order(distinct, integers=are_integers(distinct)))


def arg_order(distinct: pl.Series, *, integers: bool) -> pl.Series:
    """Indices that sort the values: by number if they are `integers`, else as text."""
    return (distinct.cast(pl.Int64) if integers else distinct).arg_sort()


def are_integers(distinct: pl.Series) -> bool:
    """True if all values are integers as they print."""
    return bool(prints_as_integer(distinct).all())


def prints_as_integer(raw: pl.Series) -> pl.Series:
    """True where a value is a 64-bit integer that prints as it stands: "007" is text."""
    return (raw.cast(pl.Int64, strict=False).cast(pl.String) == raw.cast(pl.String)).fill_null(
        False
    )


def compact(code: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes renumbered without gaps, and the old codes that are left, ascending."""
    present = np.bincount(code, minlength=size) > 0
    return (np.cumsum(present) - 1).astype(np.int32)[code], np.flatnonzero(present)
