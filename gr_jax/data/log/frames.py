"""Tables in memory as the Parquet files of a log: polars, pandas, pyarrow and others of narwhals.

From there on they are read as any other log is, so that a table and a file say the same. An index
of pandas is no column.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import narwhals as nw
import narwhals.exceptions
import polars as pl

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.log import actions, tables
from gr_jax.data.log.attributes import TITLE
from gr_jax.data.log.layout import Layout

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    Table = pl.DataFrame | pd.DataFrame | pa.Table
else:  # neither need be installed
    Table = object

_NO_VALUES = (pl.Object, pl.List, pl.Array, pl.Struct, pl.Binary, pl.Unknown)
_TEXT = (pl.String, pl.Categorical, pl.Enum)


def write_events(events: object, data: DataConfig, file: Path) -> nw.DataFrame:
    """Write the columns of `data` in a table of events to a Parquet file.

    Args:
      events: the table; lazy ones are collected.
      data: names of its columns; those of ratings and actions too.
      file: in a folder that is there.

    Returns:
      Columns `user`, `item` and `similar_item` of the kind and the types of the table, without
      rows: what `as_given` makes tables like.

    Raises:
      ConfigError: no table, an empty one, a column that is missing, there twice or of a type that
        is not meant, or ids and times that are null.
    """
    layout = Layout(
        data.user_column,
        data.item_column,
        data.time_column,
        rating=data.rating_column,
        actions=actions.parse(data.actions),
    )
    keywords = {layout.user: "user", layout.item: "item", layout.time: "time"}
    others = {name: "data.actions" for name in layout.columns.values()}
    if data.rating_column:
        others[data.rating_column] = "data.rating_column"
    table = _selected(events, "events", others | keywords)
    if not len(table):
        raise ConfigError("events: the table is empty")

    ids = (layout.user, layout.item)
    if data.on_bad_row == "error":
        _check_nulls(table, {name: keywords[name] for name in (*ids, layout.time)})
    columns = [_column(table[name], "events", is_id=name in ids) for name in table.columns]
    pl.DataFrame(columns).write_parquet(file)
    named = {"user": layout.user, "item": layout.item, "similar_item": layout.item}
    return table.select(**{name: nw.col(column) for name, column in named.items()}).head(0)


def write_items(items: object, data: DataConfig, file: Path) -> tuple[str, ...]:
    """Write a table of items to a Parquet file; the names of its features.

    Args:
      items: a table with the item column of `data`; the column `title` names the items, and those
        of `data.item_features` are features: where it has none, all others.
      file: in a folder that is there.

    Raises:
      ConfigError: as `write_events`, or a feature of numbers that are no integers.
    """
    there = _names(_table(items, "items"))
    features = data.item_features or tuple(
        name for name in there if name not in (data.item_column, TITLE)
    )
    wanted = {data.item_column: "item"} | {name: "data.item_features" for name in features}
    wanted |= {TITLE: TITLE} if TITLE in there else {}
    if len(wanted) == 1:
        raise ConfigError("items: the table has only items; it may have titles and features")
    table = _selected(items, "items", wanted)
    if data.on_bad_row == "error":
        _check_nulls(table, {data.item_column: "item"}, "items")
    frame = pl.DataFrame(
        [
            _column(table[name], "items", is_id=name == data.item_column, lists=name in features)
            for name in table.columns
        ]
    )
    for name in features:
        if frame[name].dtype.is_float():
            raise ConfigError(
                f"items: column {name!r} is {frame[name].dtype}, and each value of a feature is a"
                " category: cut it into ranges, or leave it out of the table"
            )
    frame.write_parquet(file)
    return features


def features_of(file: Path, data: DataConfig) -> tuple[str, ...]:
    """As `write_items` of a file of items: the names of its features."""
    there = tables.columns(file)
    return data.item_features or tuple(
        name for name in there if name not in (data.item_column, TITLE)
    )


def _table(given: object, what: str) -> nw.DataFrame | nw.LazyFrame:
    """The table as narwhals has it."""
    try:
        found: object = nw.from_native(given, pass_through=True, allow_series=True)
    except narwhals.exceptions.DuplicateError as error:
        told = " ".join(str(error).split())
        raise ConfigError(f"{what}: {told}; rename the other") from None
    if isinstance(found, nw.Series):
        raise ConfigError(f"{what} is one column (a Series), not a table with columns")
    if not isinstance(found, nw.DataFrame | nw.LazyFrame):
        raise ConfigError(
            f"{what} is a {type(given).__name__}: expected a table of polars, pandas or pyarrow, or"
            " the path of a file"
        )
    return found


def _names(table: nw.DataFrame | nw.LazyFrame) -> list[str]:
    names = table.collect_schema().names() if isinstance(table, nw.LazyFrame) else table.columns
    return [str(name) for name in names]


def _selected(given: object, what: str, wanted: Mapping[str, str]) -> nw.DataFrame:
    """The columns `wanted` (name -> the argument that names it) of a table, collected."""
    table = _table(given, what)
    there = _names(table)
    for name, keyword in wanted.items():
        if name not in there:
            raise _missing(given, what, name, keyword, there)
    table = table.select(*wanted)
    return table.collect() if isinstance(table, nw.LazyFrame) else table


def _missing(
    given: object, what: str, name: str, keyword: str, there: Sequence[str]
) -> ConfigError:
    shown = ", ".join(repr(column) for column in there[:20]) + ", ..." * (len(there) > 20)
    near = difflib.get_close_matches(name, there, 1)
    hint = f"; did you mean {keyword}={near[0]!r}?" if near else ""
    index = getattr(getattr(given, "index", None), "names", ())  # of pandas
    if name in index:
        hint = "; it is the index: .reset_index() makes it a column"
    return ConfigError(f"{what}: no column {name!r} ({keyword}=), only {shown}{hint}")


def _check_nulls(table: nw.DataFrame, wanted: Mapping[str, str], what: str = "events") -> None:
    for name, keyword in wanted.items():
        if count := int(table[name].null_count()):
            raise ConfigError(
                f"{what}: {count:,} of {len(table):,} rows have no {keyword} (column {name!r} is"
                " null): drop them, or set data.on_bad_row=skip"
            )


def _column(given: nw.Series, what: str, *, is_id: bool, lists: bool = False) -> pl.Series:
    """A column as polars has it, text as strings; ids are integers or text, some may be lists."""
    try:
        column = given.to_frame().to_polars().to_series()
    except Exception:  # pyarrow is not installed, or does not take what is mixed
        column = _of_values(given, what)
    kind = column.dtype
    if lists and isinstance(kind, pl.List) and not isinstance(kind.inner, _NO_VALUES):
        return column
    if isinstance(kind, _TEXT):
        column = column.cast(pl.String)
    elif isinstance(kind, _NO_VALUES) or (is_id and not (kind.is_integer() or kind == pl.Null)):
        wanted = "integers or text" if is_id else "numbers, text or date-times"
        name = given.dtype if kind == pl.Object else kind
        raise ConfigError(f"{what}: column {column.name!r} is {name}, not {wanted}: cast it")
    return column


def _of_values(given: nw.Series, what: str) -> pl.Series:
    """A column by its Python values; integers among text become text."""
    values = [
        None if null else value
        for value, null in zip(given.to_list(), given.is_null().to_list(), strict=True)
    ]
    try:
        return pl.Series(given.name, values, strict=True)
    except Exception:  # of polars: TypeError, or its own
        if not all(value is None or type(value) in (int, str) for value in values):
            kinds = " and ".join(sorted({type(v).__name__ for v in values if v is not None})[:3])
            raise ConfigError(
                f"{what}: column {given.name!r} has values of type {kinds}: cast it to one type"
            ) from None
        return pl.Series(given.name, [None if v is None else str(v) for v in values], pl.String)


def as_given(table: pl.DataFrame, like: nw.DataFrame | None) -> Table:
    """A table of the kind of `like`, whose columns of the same name have the type that they have.

    Args:
      table: any columns.
      like: as of `write_events`; None = polars.
    """
    if like is None:
        return table
    if like.implementation.is_polars():
        return table.cast({n: t for n, t in like.to_native().schema.items() if n in table.columns})
    if like.implementation.is_pyarrow():
        return _in_arrow(table, like)
    if not like.implementation.is_pandas_like():
        return table
    native = like.to_native()
    pandas = like.__native_namespace__()
    return pandas.DataFrame(
        {
            name: pandas.Series(column.to_list(), dtype=native[name].dtype)
            if name in native
            else pandas.Series(
                list(column.to_numpy()) if column.dtype.is_nested() else column.to_numpy()
            )
            for name, column in zip(table.columns, table.get_columns(), strict=True)
        }
    )


def _in_arrow(table: pl.DataFrame, like: nw.DataFrame) -> Table:
    arrow, schema = table.to_arrow(), cast("pa.Table", like.to_native()).schema
    for place, name in enumerate(table.columns):
        if name in schema.names:
            column = arrow.column(name).cast(schema.field(name).type)
            arrow = arrow.set_column(place, name, column)
    return arrow
