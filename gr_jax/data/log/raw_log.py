"""A raw log in memory: its events from all files, titles and attributes."""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.log import actions, attributes, formats, parse, times, unpack
from gr_jax.data.log.attributes import Attributes
from gr_jax.data.log.formats import RawFiles
from gr_jax.data.log.layout import Layout


@dataclass(frozen=True)
class Log:
    """A raw log in memory, in file order."""

    # user, item: Int64 or String; timestamp: Int64; optional rating: Float32, action: Int32,
    # fraction: Float64 (`times`)
    events: pl.DataFrame
    unit: str = "s"  # of the timestamps: s, ms, us or ns
    titles: pl.DataFrame | None = None  # item: raw id, title; both String
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> bad rows left out
    actions: tuple[str, ...] = ()  # name of each bit of events["action"]
    attributes: Attributes = field(default_factory=Attributes)  # of users and items, and series


def read(config: DataConfig, raw: RawFiles, scratch: Path) -> Log:
    """The log in raw files.

    Args:
      scratch: an empty folder for what is decompressed.

    Raises:
      ConfigError: a missing column, a damaged file, no log in an archive, or all times in another
        unit.
      BadRow: a row that cannot be used, unless config.on_bad_row is "skip".
    """
    raw = formats.unpacked(config, raw, scratch)
    parts, layouts, bad = zip(
        *(_read_log(config, log, raw.layout, scratch) for log in raw.logs), strict=True
    )
    layout, events = common_layout(layouts, raw), _concat(parts)
    time = events["timestamp"]
    check_unit(time.min(), time.max(), layout, raw)  # type: ignore[arg-type]
    log = with_actions(events, layout.actions, layout.action_columns)
    log = dataclasses.replace(log, events=_drop_empty_rating(log.events))
    return described(log, config, raw, layout, sum(bad, Counter()))


def common_layout(layouts: Sequence[Layout], raw: RawFiles) -> Layout:
    """The layout of the first log; raises a ConfigError if another one has other actions."""
    if any(other.actions != layouts[0].actions for other in layouts):
        raise ConfigError(f"{raw.logs[0].parent}: the logs have different action columns")
    return layouts[0]


def check_unit(first: int | None, last: int | None, layout: Layout, raw: RawFiles) -> None:
    """Raise a ConfigError if the first and last time of the log show that their unit is another."""
    if first is not None and last is not None:
        mistake = times.unit_mistake(first, last, layout.unit)
        if mistake:
            raise ConfigError(f"{raw.logs[0]}: {mistake}")


def described(log: Log, config: DataConfig, raw: RawFiles, layout: Layout, skipped: Counter) -> Log:
    """`log` with its unit, bad rows, and the titles and attributes of the other files."""
    titles = attributes.titles(config, raw.attributes, layout)
    if titles is None and raw.titles is not None:
        titles = _titles(config.source, raw.titles)
    return dataclasses.replace(
        log,
        unit=layout.unit,
        titles=titles,
        skipped=dict(sorted(skipped.items())),
        attributes=attributes.read(config, raw.attributes, layout),
    )


def with_actions(
    events: pl.DataFrame,
    happens: Sequence[actions.Action],
    columns: Mapping[actions.Action, str] | None = None,
) -> Log:
    """A log whose events have their actions as one bitmask instead of several columns.

    Args:
      columns: the column of `events` that each action looks at; None = the column of its name.

    Raises:
      ConfigError: an action looks at a column that is not there or has no numbers.
    """
    columns = columns or {action: action.column for action in happens}
    empty = [
        name
        for name in events.columns
        if events.height and events[name].null_count() == events.height
    ]
    usual = usual_columns(events, happens, columns)
    actions.check_filled(happens, columns, set(events.columns) - set(empty))
    return Log(usual, actions=tuple(action.name for action in happens))


def usual_columns(
    events: pl.DataFrame, happens: Sequence[actions.Action], columns: Mapping[actions.Action, str]
) -> pl.DataFrame:
    """Columns user, item, timestamp and, if any, rating, action and fraction of some events."""
    if happens:
        events = actions.bits(events, happens, columns)
    usual = ("user", "item", "timestamp", "rating", "action", times.FRACTION)
    return events.select(name for name in usual if name in events.columns)


def _read_log(
    config: DataConfig, file: Path, layout: Layout, scratch: Path
) -> tuple[pl.DataFrame, Layout, Counter]:
    if config.source == "parquet":
        events, skipped = parse.read_parquet(file, layout, on_bad_row=config.on_bad_row)
        return events, layout, skipped
    plain, truncated = plain_text(config, file, scratch)
    try:
        layout = resolved(config, plain, layout)
        read = parse.read_jsonl if plain.suffix == ".jsonl" else parse.read_text
        events, skipped = read(plain, layout, shown=file, on_bad_row=config.on_bad_row)
    finally:
        if plain != file:
            plain.unlink()
    return events, layout, skipped + truncated


def plain_text(config: DataConfig, file: Path, scratch: Path) -> tuple[Path, Counter]:
    """A text file in UTF-8, in `scratch` unless it is so; and a count if it is gzip cut short."""
    plain, cut = unpack.plain_text(file, scratch, on_bad_row=config.on_bad_row)
    return plain, Counter({"truncated gzip file": cut}) if cut else Counter()


def resolved(config: DataConfig, plain: Path, layout: Layout) -> Layout:
    """The layout of one text file: its delimiter, its header line if any, and its actions."""
    if config.source == "csv" and plain.suffix != ".jsonl":
        mark = _MARKS.get(config.delimiter, config.delimiter)
        mark = mark or parse.delimiter(plain, layout.columns.values())
        layout = dataclasses.replace(layout, separator=mark)
    if config.source == "amazon-2014" and "timestamp" in parse.header(plain, layout.separator):
        # Re-packed with a header line, as the k-cores are.
        layout = dataclasses.replace(layout, names=())
    if layout.actions and not config.actions:
        present = set(parse.header(plain, layout.separator))
        there = tuple(action for action in layout.actions if action.column in present)
        layout = dataclasses.replace(layout, actions=there)
    return layout


_MARKS = {"tab": "\t", "\\t": "\t"}


def _concat(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The parts of a log as one; mixed ids, integers and strings (Parquet), become strings."""
    for name in ("user", "item"):
        if len({part[name].dtype for part in parts}) > 1:
            parts = [part.with_columns(pl.col(name).cast(pl.String)) for part in parts]
    return times.concat(parts)


def _drop_empty_rating(events: pl.DataFrame) -> pl.DataFrame:
    if "rating" not in events.columns:
        return events
    if events["rating"].null_count() == events.height:
        return events.drop("rating")
    return events.with_columns(pl.col("rating").fill_null(float("nan")))


def _titles(source: str, file: Path) -> pl.DataFrame:
    """Titles of a MovieLens folder; lines that are not of the format have none."""
    encoding = "utf-8" if source == "ml-20m" else "latin-1"
    with open(file, encoding=encoding, errors="replace", newline="") as lines:
        if source == "ml-20m":
            fields = list(csv.reader(lines))[1:]
        else:
            fields = [line.split("|" if source == "ml-100k" else "::") for line in lines]
    pairs = []
    for row in fields:
        try:
            pairs.append((str(int(row[0])), row[1]))
        except (ValueError, IndexError):  # no line of the format
            continue
    return pl.DataFrame(pairs, schema={"item": pl.String, "title": pl.String}, orient="row")
