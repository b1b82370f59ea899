"""Values of the columns of a raw file, of whatever type they are there, as those of events.

Text and Parquet go through the same rules, so that a log says the same in both: what is no id, no
time, no number or no flag is a bad row; a column of a type that cannot be meant is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import polars as pl

from gr_jax.config import ConfigError
from gr_jax.data.log import times
from gr_jax.data.log.layout import Layout

_FLAGS = {"1": 1, "0": 0, "true": 1, "false": 0, "1.0": 1, "0.0": 0}


class _Checked(NamedTuple):
    """Columns of events, and what is wrong where: (True where it is, in words), first things first.

    Where anything is wrong the values mean nothing.
    """

    columns: list[pl.Series]
    wrong: list[tuple[pl.Series, str]]


def typed(raw: pl.DataFrame, layout: Layout, *, shown: Path) -> tuple[pl.DataFrame, pl.Series]:
    """Columns of events by the types of `layout`, and what is wrong in each row, or null.

    Args:
      raw: the columns of the layout as they are in the file, as text or of their own types.
      shown: the file to name in errors.

    Returns:
      The events, with a column `fraction` where some time has one, integer ids as Int64; and the
      first mistake of each row.

    Raises:
      ConfigError: a column of a type that is no id, time, number or flag.
    """
    checked = []
    for role, name in layout.columns.items():
        column, where = raw[role], f"{shown}: column {name!r}"
        if role in ("user", "item"):
            checked.append(_id(column, role, where, integer=layout.integer_ids))
        elif role == "timestamp":
            checked.append(_time(column, layout, where))
        elif role in layout.optional:
            checked.append(_number(column, layout, where))
        else:
            checked.append(_flag(column, where))

    reason = pl.Series("reason", [None], dtype=pl.String).new_from_index(0, raw.height)
    for mask, words in reversed([wrong for one in checked for wrong in one.wrong]):
        if mask.any():
            told = pl.when(mask).then(pl.lit(words)).otherwise(reason)
            reason = pl.select(reason=told)["reason"]
    # The fraction comes last, where `times.concat` puts it too.
    columns = [column for one in checked for column in one.columns]
    return pl.DataFrame(sorted(columns, key=lambda column: column.name == times.FRACTION)), reason


def _id(column: pl.Series, role: str, where: str, *, integer: bool) -> _Checked:
    empty = f"empty {role} id"
    if column.dtype.is_integer():
        number = column.cast(pl.Int64, strict=False)
        if number.null_count() > column.null_count():  # such as hashes of 64 bits without a sign
            number = column.cast(pl.String)
        return _Checked([number], [(column.is_null(), empty)])
    if not isinstance(column.dtype, (pl.String, pl.Categorical, pl.Enum, pl.Null)):
        raise ConfigError(f"{where} is {column.dtype}, not integers or strings")
    text = column.cast(pl.String)
    broken = text.str.contains("\ufffd|\n").fill_null(False)
    wrong = [
        (text.fill_null("").str.strip_chars() == "", empty),
        (broken, f"{role} id is not one line of UTF-8 text"),
    ]
    if integer:
        text = text.cast(pl.Int64, strict=False)
        wrong.append((text.is_null(), f"{role} id is not an integer"))
    return _Checked([text], wrong)


def _time(column: pl.Series, layout: Layout, where: str) -> _Checked:
    time, *rest = times.split(column, layout.unit, where=where)
    infinite = pl.repeat(False, len(column), eager=True)
    if column.dtype.is_float():
        infinite = column.is_infinite().fill_null(False)
    elif column.dtype == pl.String:
        infinite = (
            column.str.contains(r"(?i)^\s*[+-]?inf(inity)?\s*$").fill_null(False) & time.is_null()
        )
    wrong = [
        (infinite, "time is infinite"),
        (time.is_null(), "time is not a number"),
        ((time < 0).fill_null(False), "time is negative"),
        ((time > layout.last_time).fill_null(False), "time is after the year 2100"),
    ]
    return _Checked([time, *rest], wrong)


def _number(column: pl.Series, layout: Layout, where: str) -> _Checked:
    """A number without which an event is still one; NaN and empty text are none."""
    kind, name = layout.types[column.name], column.name.removeprefix("number:")
    if column.dtype == pl.String:
        text = column.str.strip_chars()
        number = text.cast(kind, strict=False)
        unread = number.is_null() & (text.fill_null("") != "")
    elif column.dtype.is_numeric() or column.dtype == pl.Null:
        number = column.cast(kind)
        unread = pl.repeat(False, len(column), eager=True)
    else:
        raise ConfigError(f"{where} is {column.dtype}, not numbers")
    number = number.fill_nan(None)
    unread = unread | number.is_infinite().fill_null(False)
    return _Checked([number], [(unread, f"{name} is not a number")])


def _flag(column: pl.Series, where: str) -> _Checked:
    """0 or 1 of 0 and 1, true and false, or either as text; an absent one is a bad row."""
    if column.dtype in (pl.String, pl.Null):
        text = column.cast(pl.String).str.strip_chars().str.to_lowercase()
        bit = text.replace_strict(_FLAGS, default=None, return_dtype=pl.Int8)
    elif column.dtype == pl.Boolean:
        bit = column.cast(pl.Int8)
    elif column.dtype.is_numeric():
        bit = pl.select(
            pl.when(column == 1).then(1).when(column == 0).then(0).cast(pl.Int8).alias(column.name)
        )[column.name]
    else:
        raise ConfigError(f"{where} is {column.dtype}, not 0 and 1 or true and false")
    name = column.name.removeprefix("action:")
    return _Checked([bit], [(bit.is_null(), f"{name} is not 0 or 1")])
