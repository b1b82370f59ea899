"""Times of raw files as integers of the log's unit, and their fractions, which order events.

Events and entries of series have the column `fraction`, Float64 in [0, 1) of the unit, where a
time is no integer: 1700000000.9 comes after 1700000000.1 wherever they stand in the file, and both
become 1700000000 in the dataset.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from gr_jax.data.log.layout import PER_SECOND, Layout

FRACTION = "fraction"
_TICKS = {"ms": 10**3, "us": 10**6, "ns": 10**9}  # of a date-time, in a second


def integer_time(text: pl.Expr) -> pl.Expr:
    """Integer time of a string; a fraction is cut off."""
    number = text.cast(pl.Float64, strict=False).floor()
    return pl.coalesce(text.cast(pl.Int64, strict=False), number.cast(pl.Int64, strict=False))


def fraction(text: pl.Expr) -> pl.Expr:
    """The part that `integer_time` cuts off; 0 where the string is no number."""
    number = text.cast(pl.Float64, strict=False)
    return (number - number.floor()).fill_nan(None).fill_null(0.0).alias(FRACTION)


def split(time: pl.Series, layout: Layout) -> list[pl.Series]:
    """Integer times of a Parquet file in the layout's unit, under the same name; and fractions.

    So it is for date-times, floats and decimals; a column of another type is returned as it is.
    """
    if isinstance(time.dtype, pl.Date):
        time = time.cast(pl.Datetime("ms"))
    if isinstance(time.dtype, pl.Datetime):
        size = _TICKS[time.dtype.time_unit] // PER_SECOND[layout.unit]
        ticks = time.to_physical()
        whole, rest = ticks // size, (ticks % size) / size
    elif time.dtype.is_float() or time.dtype.is_decimal():
        number = time.cast(pl.Float64)
        whole, rest = number.floor().cast(pl.Int64, strict=False), number - number.floor()
    else:
        return [time]
    rest = rest.fill_nan(None).fill_null(0.0).alias(FRACTION)
    return [whole, rest] if (rest != 0).any() else [whole]


def without_zeros(events: pl.DataFrame) -> pl.DataFrame:
    """The events without fractions if all are 0."""
    return (
        events
        if FRACTION not in events.columns or (events[FRACTION] != 0).any()
        else events.drop(FRACTION)
    )


def concat(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Frames of events one after the other; fractions are 0 where only other frames have them."""
    if any(FRACTION in frame.columns for frame in frames):
        zero = pl.lit(0.0).alias(FRACTION)
        frames = [
            frame if FRACTION in frame.columns else frame.with_columns(zero) for frame in frames
        ]
    return pl.concat(frames)
