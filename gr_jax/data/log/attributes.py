"""Attributes of users and items and slowly changing series of users, as raw text.

A public format has files of its own (`OFFICIAL`); `data.user_file` and `data.item_file` name
others, with a header line or Parquet, whose user, item and time columns are called as in the log.
Their values are categories: "3" is a name.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.log import movielens_attributes, tables, times
from gr_jax.data.log.layout import BadRow, Layout

OFFICIAL = {  # source -> files of user and item attributes, as shell patterns
    "ml-100k": {"user": "u.user", "item": "u.item"},
    "ml-1m": {"user": "users.dat", "item": "movies.dat"},
    "ml-20m": {"item": "movies.csv"},
    "kuairand": {"user": "user_features_*.csv", "item": "video_features_basic_*.csv"},
}


TITLE = "title"  # column of `data.item_file` that names the items


@dataclass(frozen=True)
class Table:
    """Static attributes of the users or of the items."""

    file: Path
    names: tuple[str, ...]  # of the attributes, in the order of the config
    # raw: id in the log; "0", "1", ..: String of a user, List(String) of an item; null = unknown
    rows: pl.DataFrame


@dataclass(frozen=True)
class Series:
    """A value of each user that changes slowly."""

    file: Path
    name: str
    # raw: id in the log; time: Int64, in the unit of the log; value: String; fraction: Float64
    rows: pl.DataFrame


@dataclass(frozen=True)
class Attributes:
    """All that was asked for, in file order."""

    users: Table | None = None
    items: Table | None = None
    series: tuple[Series, ...] = ()
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> rows left out


def check(config: DataConfig) -> None:
    """Check the settings of features, before a log is looked for or downloaded.

    Raises:
      ConfigError: features that the source has no file of, one named twice, or a series that is
        not NAME=FILE.
    """
    for name in ("user_features", "item_features", "series"):
        if config.source == "synthetic" and getattr(config, name):
            raise ConfigError(
                f"data.{name}={getattr(config, name)}: the generated log has none; leave it empty"
            )
    for kind in ("user", "item"):
        names = _features(config, kind)
        if len(set(names)) < len(names):
            raise ConfigError(f"data.{kind}_features={names}: one is there twice; leave it out")
        if (
            names
            and not getattr(config, f"{kind}_file")
            and kind not in OFFICIAL.get(config.source, {})
        ):
            remedy = f"data.source={config.source} has no file of them; set data.{kind}_file"
            raise ConfigError(f"data.{kind}_features={names}: {remedy}")
    _series_files(config)


def official_files(config: DataConfig) -> list[str]:
    """Patterns of the files of the public format that the config's features need."""
    kinds = [
        kind
        for kind in ("user", "item")
        if _features(config, kind) and not getattr(config, f"{kind}_file")
    ]
    return [OFFICIAL[config.source][kind] for kind in kinds]


def own_files(config: DataConfig) -> set[str]:
    """Names of the files that the config names beside the log: they are no logs."""
    return {config.user_file, config.item_file, *_series_files(config).values()} - {""}


def find(config: DataConfig, *, beside: Path, official: Path | None) -> dict[str, Path]:
    """The files that the config's features need: under "user", "item" and the names of the series.

    Args:
      beside: folder that the files named in the config are relative to.
      official: folder with the files of the public format; None = they are still in an archive,
        and left out.

    Raises:
      ConfigError: a file that is not there.
    """
    found = {}
    for kind in ("user", "item"):
        own = getattr(config, f"{kind}_file")
        titles_alone = own and kind == "item"
        if not _features(config, kind) and not titles_alone:
            continue
        if own:
            found[kind] = _existing(beside / own, f"data.{kind}_file={own!r}")
        elif official is not None:
            found[kind] = _official(config, kind, official)
    for name, file in _series_files(config).items():
        found[name] = _existing(beside / file, f"data.series: {name}={file}")
    return found


def _features(config: DataConfig, kind: str) -> tuple[str, ...]:
    return getattr(config, f"{kind}_features")


def _existing(file: Path, setting: str) -> Path:
    if not file.is_file():
        raise ConfigError(
            f"{setting}: no file {file}; name it relative to the folder of the log, or in full"
        )
    return file


def _official(config: DataConfig, kind: str, folder: Path) -> Path:
    pattern = OFFICIAL[config.source][kind]
    setting = f"data.{kind}_features={_features(config, kind)}"
    files = sorted(file for end in ("", ".gz") for file in folder.glob(pattern + end))
    if len(files) != 1:
        there = (
            f"several files ({', '.join(f.name for f in files)})" if files else f"no file {pattern}"
        )
        raise ConfigError(
            f"{setting}: {there} beside the log in {folder}; put it there or set data.{kind}_file"
        )
    return files[0]


def _series_files(config: DataConfig) -> dict[str, str]:
    files = {}
    for text in config.series:
        name, _, file = (part.strip() for part in text.partition("="))
        if not name or not file or name in files or name in ("user", "item"):
            raise ConfigError(
                f"data.series: {text!r} is not NAME=FILE with a name of its own, as"
                " country=country.csv"
            )
        files[name] = file
    return files


def read(config: DataConfig, found: dict[str, Path], layout: Layout) -> Attributes:
    """The attributes and series in the files that `find` returned.

    Args:
      layout: of the log: names of its columns and unit of its times.

    Raises:
      ConfigError: a file that cannot be read or lacks a column.
      BadRow: unless config.on_bad_row is "skip", a row without an id, or of a series without a
        value or with a bad time.
    """
    skipped: Counter = Counter()
    found_tables = {}
    for kind, key in (("user", layout.user), ("item", layout.item)):
        if kind in found and _features(config, kind):
            found_tables[f"{kind}s"] = _table(config, kind, found[kind], key, skipped)
    series = tuple(
        _series(config, name, found[name], layout, skipped) for name in _series_files(config)
    )
    return Attributes(**found_tables, series=series, skipped=dict(skipped))


def titles(config: DataConfig, found: dict[str, Path], layout: Layout) -> pl.DataFrame | None:
    """Columns item (raw id) and title of `data.item_file`; None without a column `title`.

    Raises:
      ConfigError: the file cannot be read, or the config wants nothing of it.
    """
    if not config.item_file:
        return None
    file = found["item"]
    if TITLE not in tables.columns(file):
        if config.item_features:
            return None
        what, remedy = (
            f"no column {TITLE!r} in it and no features wanted",
            "name columns of it in data.item_features",
        )
        raise ConfigError(f"data.item_file={config.item_file!r}: {what}; {remedy}")
    frame = tables.read(file, {layout.item: "item column", TITLE: "title column"})
    return frame.select(_id(layout.item).alias("item"), _value(TITLE).alias(TITLE)).drop_nulls()


def _table(config: DataConfig, kind: str, file: Path, key: str, skipped: Counter) -> Table:
    names = _features(config, kind)
    reader = (
        None
        if getattr(config, f"{kind}_file")
        else movielens_attributes.READERS.get((config.source, kind))
    )
    what = {key: f"{kind} column"} | {name: f"data.{kind}_features column" for name in names}
    if reader is None:
        frame = tables.read(file, what, lists=names if kind == "item" else ())
    else:
        frame, key = reader(file), "raw"
        tables.check_columns(file, frame.columns, {name: what[name] for name in names}, hidden=key)
    between = "," if config.source == "kuairand" and not config.item_file else "|"
    cells = [_values(frame, name, between) if kind == "item" else _value(name) for name in names]
    frame = frame.select(_id(key), *(cell.alias(str(i)) for i, cell in enumerate(cells)))
    frame = _sift(
        frame, {f"no {kind} id": pl.col("raw").is_null()}, file, config.on_bad_row, skipped
    )
    first = frame.unique("raw", keep="first", maintain_order=True)
    if first.height < frame.height:
        skipped[f"repeated {kind} in {file.name}"] += frame.height - first.height
    return Table(file, names, first.drop("number"))


def _id(name: str) -> pl.Expr:
    """An id as it is in the log; null where it is blank."""
    text = pl.col(name).cast(pl.String)
    return pl.when(text.str.strip_chars() != "").then(text).alias("raw")


def _value(name: str) -> pl.Expr:
    """One value a cell: its text without blanks around; null where nothing is left."""
    text = pl.col(name).cast(pl.String).str.strip_chars()
    return pl.when(text != "").then(text)


def _values(frame: pl.DataFrame, name: str, between: str) -> pl.Expr:
    """Several values a cell, in a list or with a mark between them."""
    if isinstance(frame.schema[name], pl.List):
        parts = pl.col(name).cast(pl.List(pl.String))
    else:
        parts = pl.col(name).cast(pl.String).str.split(between)
    text = pl.element().str.strip_chars()
    return parts.list.eval(text.filter(text != ""))


def _series(config: DataConfig, name: str, file: Path, layout: Layout, skipped: Counter) -> Series:
    what = {layout.user: "user column", layout.time: "time column", name: "data.series column"}
    frame = tables.read(file, what, typed=(layout.time,))
    where = f"{file}: column {layout.time!r}"
    time, *fraction = times.split(frame[layout.time], layout.unit, where=where)
    frame = frame.select(
        _id(layout.user),
        time.cast(pl.Int64).alias("time"),
        _value(name).alias("value"),
        *(fraction or [pl.lit(0.0).alias(times.FRACTION)]),
    )
    reasons = {
        "no user id": pl.col("raw").is_null(),
        f"no {name}": pl.col("value").is_null(),
        "time is not a number": pl.col("time").is_null(),
        "time is negative": pl.col("time") < 0,
        "time is after the year 2100 (data.time_unit is the unit of its times too)": pl.col("time")
        > layout.last_time,
    }
    frame = _sift(frame, reasons, file, config.on_bad_row, skipped)
    return Series(file, name, frame.drop("number"))


def _sift(
    frame: pl.DataFrame, reasons: dict[str, pl.Expr], file: Path, on_bad_row: str, skipped: Counter
):
    """The rows to which no reason applies, with their number from 1."""
    frame = frame.with_row_index("number", offset=1)
    for reason, expression in reasons.items():
        bad = frame.filter(expression)
        if bad.height and on_bad_row == "error":
            row = bad["number"][0]
            # After a header line: of files without one, MovieLens', the reader checks the ids.
            where = f"{file}: row {row}" if file.suffix == ".parquet" else f"{file}:{row + 1}"
            raise BadRow(f"{where}: {reason}; correct the row or set data.on_bad_row=skip")
        if bad.height:
            skipped[f"{reason} in {file.name}"] += bad.height
        frame = frame.filter(~expression.fill_null(False))
    return frame
