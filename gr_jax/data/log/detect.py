"""What a log that nobody has described looks like: the format of its file, its unit of time."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import tempfile
from pathlib import Path

import polars as pl

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.log import formats, parse, raw_log, times
from gr_jax.data.log.layout import Layout

_LINES = 100  # of the log whose times are looked at


def described(config: DataConfig) -> DataConfig:
    """The same log with its `source`, csv or parquet, and its `time_unit`, by what is in it.

    Args:
      config: with the path of the log and its columns.

    Raises:
      ConfigError: there is no log, or it lacks a column.
    """
    place = Path(config.path).expanduser()
    inside = sorted(file for file in place.rglob("*.*") if file.is_file()) if place.is_dir() else ()
    file = next(iter(inside), place)
    if not file.is_file():
        raise ConfigError(f"{place}: no log there")
    with open(file, "rb") as content:
        source = "parquet" if content.read(4) == b"PAR1" else "csv"
    config = dataclasses.replace(config, source=source)
    found = {times.looks_like(time) for time in _first_times(config)}
    units = sorted(unit for unit in found if unit)
    return dataclasses.replace(config, time_unit=units[0] if len(units) == 1 else config.time_unit)


def _first_times(config: DataConfig) -> list[int]:
    """The numbers among the first times of a log."""
    raw = formats.find(config) or formats.fetch(config)
    with tempfile.TemporaryDirectory() as name:
        raw = formats.unpacked(config, raw if raw.files else formats.fetch(config), Path(name))
        file, column = raw.logs[0], raw.layout.columns["timestamp"]
        if config.source == "parquet":
            parse.check_columns(tuple(pl.read_parquet_schema(file)), raw.layout, file)
            times_there = pl.scan_parquet(file).select(column).head(_LINES).collect()[column]
            fields = times_there.to_list() if times_there.dtype.is_numeric() else []
        else:
            plain, _ = raw_log.plain_text(config, file, Path(name))
            fields = _fields(config, plain, raw.layout, file)
    numbers = map(_number, fields)
    return [int(number) for number in numbers if math.isfinite(number)]


def _fields(config: DataConfig, plain: Path, layout: Layout, shown: Path) -> list[str]:
    """The first texts in the column of times of a text file."""
    column = layout.columns["timestamp"]
    if plain.suffix == ".jsonl":
        lines = pl.scan_ndjson(plain, schema={column: pl.String}).head(_LINES).collect()
        return lines[column].drop_nulls().to_list()
    layout = raw_log.resolved(config, plain, layout)
    names = parse.header(plain, layout.separator)
    parse.check_columns(tuple(names), layout, shown)
    at = names.index(column)
    with open(plain, encoding="utf-8", errors="replace", newline="") as lines:
        rows = csv.reader(lines, delimiter=layout.separator)
        return [text for row in itertools.islice(rows, 1, 1 + _LINES) for text in row[at : at + 1]]


def _number(field: str | int | float | None) -> float:
    try:
        return math.nan if field is None else float(field)
    except ValueError:  # a date-time
        return math.nan
