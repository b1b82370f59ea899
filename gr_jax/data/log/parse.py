"""Raw files to typed event columns, strictly; `bad_rows` handles files that have bad rows."""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import polars as pl

from gr_jax.config import ConfigError
from gr_jax.data.log import bad_rows, values
from gr_jax.data.log.bad_rows import Origin
from gr_jax.data.log.layout import Layout

_CHUNK_BYTES = 1 << 22


def read_text(
    plain: Path, layout: Layout, *, shown: Path, on_bad_row: str, before: int = 0
) -> tuple[pl.DataFrame, Counter]:
    """Events of a delimited text file, and the number of rows skipped by reason.

    Args:
      plain: the uncompressed file, or a piece of one: whole lines.
      shown: the file to name in errors.
      before: lines of that file before the piece.

    Returns:
      Columns user and item (Int64 if the layout says integers, else String), timestamp (Int64, in
      the layout's unit), rating (Float32, if the layout has one), and the columns that its actions
      look at; fraction (Float64, beyond the integer timestamp) where some time has one.

    Raises:
      ConfigError: a column is missing. BadRow: the first row that cannot be used, if on_bad_row is
        "error".
    """
    names = layout.names or tuple(header(plain, layout.separator))
    check_columns(names, layout, shown)
    if _lines_have_fields(plain, layout, len(names)):
        # Most logs are plain numbers and text, which polars reads as such; others as text.
        events = _parse(plain, layout, names, layout.types)
        if events is not None and _is_sound(events, layout):
            return events, Counter()
        texts = _parse(plain, layout, names, dict.fromkeys(layout.types, pl.String))
        if texts is not None:
            events, reason = values.typed(texts, layout, shown=shown)
            if reason.null_count() == len(reason):
                return events, Counter()
    origin = Origin(shown, len(names), plain, before)
    rows = bad_rows.text_rows(plain, layout, names)
    return bad_rows.sift(rows, layout, origin, on_bad_row=on_bad_row)


def read_jsonl(
    plain: Path, layout: Layout, *, shown: Path, on_bad_row: str, before: int = 0
) -> tuple[pl.DataFrame, Counter]:
    """As `read_text`, of a file with one JSON object a line."""
    columns = layout.columns
    schema = dict.fromkeys(columns.values(), pl.String)  # which takes numbers as they are written
    try:
        chosen = [pl.col(name).alias(role) for role, name in columns.items()]
        texts = pl.scan_ndjson(plain, schema=schema).select(chosen).collect()
    except pl.exceptions.PolarsError:
        texts = None
    if texts is not None:
        events, reason = values.typed(texts, layout, shown=shown)
        if reason.null_count() == len(reason):
            return events, Counter()
    origin = Origin(shown, len(columns), plain, before)
    return bad_rows.sift(bad_rows.json_rows(plain, layout), layout, origin, on_bad_row=on_bad_row)


def read_parquet(
    file: Path, layout: Layout, *, on_bad_row: str, before: int = 0, rows: int | None = None
) -> tuple[pl.DataFrame, Counter]:
    """As `read_text`, of a Parquet file; date-times get the layout's unit; rows count from 1.

    Args:
      before, rows: rows to leave out, and to read after them; None = all.
    """
    try:
        names = pl.read_parquet_schema(file)
        check_columns(tuple(names), layout, file)
        chosen = [pl.col(name).alias(role) for role, name in layout.columns.items()]
        raw = pl.scan_parquet(file).select(chosen).slice(before, rows).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        with open(file, "rb") as content:
            other = content.read(4) != b"PAR1"
        text = "; data.source=csv reads text" * other
        what = f"not a readable Parquet file ({_first_line(error)}){text}"
        raise ConfigError(f"{file}: {what}") from None
    width = len(layout.columns)
    numbered = raw.with_row_index("number", offset=1).with_columns(found=pl.lit(width))
    origin = Origin(file, width, before=before)
    return bad_rows.sift([numbered], layout, origin, on_bad_row=on_bad_row)


def header(plain: Path, separator: str) -> list[str]:
    """Fields of the first line."""
    with open(plain, encoding="utf-8-sig", errors="replace") as lines:
        first = lines.readline(_CHUNK_BYTES).rstrip("\r\n")
    try:
        return next(csv.reader([first], delimiter=separator)) if first else []
    except csv.Error:  # a field of 131,072 characters: not what stands between the fields
        return [first[:100]]


def delimiter(plain: Path, wanted: Collection[str]) -> str:
    """The mark by which the first line has the columns that are wanted, else the most columns."""

    def found(mark: str) -> tuple[int, int]:
        names = header(plain, mark)
        return len(set(wanted) & set(names)), len(names)

    return max(",\t;|", key=found)


def check_columns(names: tuple[str, ...], layout: Layout, shown: Path) -> None:
    """Raise a ConfigError where a file lacks a column of the layout, or has it twice."""
    if not names:
        raise ConfigError(f"{shown}: empty file")
    for role, name in layout.columns.items():
        # user, item, timestamp, rating or action
        kind = role.partition(":")[0].replace("number", "action")
        if name not in names:
            near = difflib.get_close_matches(name, names[:1000], 1)
            did_you_mean = f"; did you mean {near[0]!r}?" if near else ""
            there = ", ".join(map(repr, names[:20])) + ", ..." * (len(names) > 20)
            json = names[0].lstrip().startswith(("{", "["))
            looks = "; it looks like JSON: write one object a line and call it .jsonl" * json
            raise ConfigError(
                f"{shown}: no {kind} column {name!r}, only {there[:500]}{did_you_mean}{looks}"
            )
        if names.count(name) > 1:
            raise ConfigError(
                f"{shown}: the {kind} column {name!r} is there {names.count(name)} times; rename"
                " the others"
            )


def _lines_have_fields(plain: Path, layout: Layout, fields: int) -> bool:
    """True if every line has exactly `fields` fields.

    A CSV parser fills missing fields with nulls and, reading some columns only, overlooks
    superfluous ones.
    """
    separator, marks_per_line = ord(layout.separator[0]), (fields - 1) * len(layout.separator) + 1
    rest = b""
    with open(plain, "rb") as file:
        while block := file.read(_CHUNK_BYTES):
            text = rest + block
            marks, end = _marks(text, separator, layout.quoted)
            rest = text[end:]
            if (marks != marks_per_line).any() or len(rest) > _CHUNK_BYTES:  # no line is that long
                return False
    marks, end = _marks(rest + b"\n", separator, layout.quoted)
    return not rest or (end == len(rest) + 1 and bool((marks == marks_per_line).all()))


def _marks(text: bytes, separator: int, quoted: bool) -> tuple[np.ndarray, int]:
    """Separators and line break of each whole line, counted, and where the last one ends."""
    byte = np.frombuffer(text, np.uint8)
    is_mark = (byte == separator) | (byte == ord("\n"))
    if quoted and b'"' in text:
        # After an odd number of quotes one is inside of them; a doubled quote changes nothing. The
        # sum may overflow.
        is_mark &= np.cumsum(byte == ord('"'), dtype=np.uint8) % 2 == 0
    at = np.flatnonzero(is_mark)
    ends = np.flatnonzero(byte[at] == ord("\n"))
    return np.diff(ends, prepend=-1), int(at[ends[-1]]) + 1 if len(ends) else 0


def _parse(plain: Path, layout: Layout, names: tuple[str, ...], types: dict) -> pl.DataFrame | None:
    """The strict parse of a file whose lines all have the right number of fields, if it has one."""
    width = len(layout.separator)  # of "::" polars sees ":" and an empty column between any two
    at = {role: width * names.index(name) for role, name in layout.columns.items()}
    # The first role decides (a flag may also be compared).
    of_place = {place: types[role] for role, place in reversed(at.items())}
    schema = {f"c{i}": of_place.get(i, pl.String) for i in range(width * (len(names) - 1) + 1)}
    frame = pl.scan_csv(
        plain,
        has_header=False,
        skip_rows=0 if layout.names else 1,
        schema=schema,
        separator=layout.separator[0],
        quote_char='"' if layout.quoted else None,
    )
    between = [f"c{i}" for i in range(len(schema)) if i % width]
    chosen = [pl.col(f"c{i}").cast(types[role]).alias(role) for role, i in at.items()]
    try:
        events = frame.select(chosen + between).collect()
    except pl.exceptions.PolarsError:
        return None
    if any(events[name].null_count() < events.height for name in between):  # single separators
        return None
    return events.drop(between)


def _is_sound(events: pl.DataFrame, layout: Layout) -> bool:
    """True if every value can be used as it is; an absent rating can."""
    if any(events[name].null_count() for name in events.columns if name not in layout.optional):
        return False
    for name in ("user", "item"):
        column = events[name]
        if column.dtype == pl.String:
            if (column.str.contains("\n", literal=True) | (column.str.strip_chars() == "")).any():
                return False
    actions = [events[name] for name in events.columns if name.startswith("action:")]
    return bool(
        events["timestamp"].is_between(0, layout.last_time).all()
        and all(events[name].is_finite().all() for name in layout.optional)
        and all(action.is_between(0, 1).all() for action in actions)
    )


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0][:120]
