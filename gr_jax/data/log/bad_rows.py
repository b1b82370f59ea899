"""Rows of a raw file, to find the bad ones: raise at the first, or count them.

A frame of rows has the columns of the layout, as strings or as a Parquet file has them, `number`
(of the line, from 1) and `found` (fields of that line; other values are null where it is not the
number expected).
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from gr_jax.data.log import times, values
from gr_jax.data.log.layout import BadRow, Layout

_CHUNK_ROWS = 1 << 18  # rows held as Python strings at once
_CHUNK_BYTES = 1 << 24
_FIELDS = "wrong number of fields"
_SKIP = "or set data.on_bad_row=skip"


class Origin(NamedTuple):
    """Where rows come from."""

    shown: Path  # the file to name in errors
    fields: int  # of a good row
    plain: Path | None = None  # the text file to quote a line from; None = the rows have no lines
    before: int = 0  # lines or rows of the shown file before the first


def sift(
    frames: Iterable[pl.DataFrame], layout: Layout, origin: Origin, *, on_bad_row: str
) -> tuple[pl.DataFrame, Counter]:
    """Typed events of frames of rows, and the number of bad rows by reason.

    Raises:
      BadRow: at the first bad row, if on_bad_row is "error".
      ConfigError: a column of a type that cannot be meant.
    """
    skipped: Counter = Counter()
    chunks = []
    for rows in frames:
        events, reason = values.typed(rows, layout, shown=origin.shown)
        miscounted = rows["found"] != origin.fields
        if miscounted.any():
            reason = pl.select(pl.when(miscounted).then(pl.lit(_FIELDS)).otherwise(reason))[:, 0]
        bad = reason.is_not_null()
        if on_bad_row == "error" and bad.any():
            first = int(bad.arg_max())  # type: ignore[arg-type]
            why = str(reason[first])
            all_so = rows.height > 1 and bool((reason == why).fill_null(False).all())
            raise _bad_row(rows.row(first, named=True), why, layout, origin, all_so=all_so)
        skipped.update(reason.drop_nulls().to_list())
        chunks.append(events.filter(~bad) if bad.any() else events)
    if not chunks:
        return pl.DataFrame(schema=layout.types), skipped
    return times.without_zeros(times.concat(chunks)), skipped


def text_rows(plain: Path, layout: Layout, names: tuple[str, ...]) -> Iterator[pl.DataFrame]:
    """Frames of rows of a delimited text file whose columns are `names`."""
    if layout.quoted and has_quote(plain):
        yield from _frames(_quoted_rows(plain, layout, names), layout, len(names))
        return
    roles = list(layout.columns)
    picks = [names.index(name) for name in layout.columns.values()]
    for first, lines in _line_blocks(plain):
        line = pl.col("line").str.strip_chars_end("\r")
        separators = line.str.count_matches(layout.separator, literal=True).cast(pl.Int64)
        fields = line.str.split_exact(layout.separator, len(names) - 1)
        rows = (
            pl.DataFrame({"number": range(first, first + len(lines)), "line": lines})
            .filter(line != "")  # a blank line is no row
            .select("number", (separators + 1).alias("found"), fields.alias("fields"))
        )
        fields = rows["fields"].struct.fields
        good = pl.col("found") == len(names)
        chosen = [
            pl.when(good).then(pl.col("fields").struct.field(fields[i])).alias(role)
            for role, i in zip(roles, picks, strict=True)
        ]
        skip = 0 if layout.names else 1  # header line
        yield rows.filter(pl.col("number") > skip).select("number", "found", *chosen)


def has_quote(plain: Path) -> bool:
    """True if a double quote is anywhere in the file."""
    with open(plain, "rb") as file:
        return any(b'"' in block for block in iter(lambda: file.read(_CHUNK_BYTES), b""))


def _line_blocks(plain: Path) -> Iterator[tuple[int, pl.Series]]:
    """(number of the first line, lines) of a text file. Only "\\n" ends a line, as for polars."""
    number, rest = 1, b""
    with open(plain, "rb") as file:
        while True:
            block = file.read(_CHUNK_BYTES)
            text = rest + block
            end = text.rfind(b"\n") if block else len(text)
            rest = text[end + 1 :]
            if end >= 0 and text:
                whole = text[:end].decode("utf-8-sig" if number == 1 else "utf-8", "replace")
                lines = pl.Series(whole.split("\n"), dtype=pl.String)
                yield number, lines
                number += len(lines)
            if not block:
                return


def _quoted_rows(
    plain: Path, layout: Layout, names: tuple[str, ...]
) -> Iterator[tuple[int, int, list]]:
    """(line number, fields found, the layout's fields or nulls), by a reader that knows quotes."""
    picks = [names.index(name) for name in layout.columns.values()]
    nothing = [None] * len(picks)
    number = 1
    with open(plain, encoding="utf-8-sig", errors="replace", newline="\n") as lines:
        reader = csv.reader(lines, delimiter=layout.separator)
        while True:
            try:
                fields = next(reader, None)
            except csv.Error:  # a field longer than any sane one: a quote that never closes
                yield number, 1, nothing
                return
            if fields is None:
                return
            if fields and not (number == 1 and not layout.names):
                good = len(fields) == len(names)
                yield number, len(fields), [fields[i] for i in picks] if good else nothing
            number = reader.line_num + 1


def json_rows(plain: Path, layout: Layout) -> Iterator[pl.DataFrame]:
    """Frames of rows of a file with one JSON object a line."""
    return _frames(_json_rows(plain, list(layout.columns.values())), layout, len(layout.columns))


def _json_rows(plain: Path, names: list[str]) -> Iterator[tuple[int, int, list]]:
    with open(plain, encoding="utf-8-sig", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
                values = [values.get(name) for name in names]
            except (ValueError, AttributeError):
                yield number, 0, [None] * len(names)
                continue
            yield number, len(names), [None if value is None else str(value) for value in values]


def _frames(
    rows: Iterator[tuple[int, int, list]], layout: Layout, width: int
) -> Iterator[pl.DataFrame]:
    while batch := list(itertools.islice(rows, _CHUNK_ROWS)):
        number, found, fields = zip(*batch, strict=True)
        columns = dict(zip(layout.columns, zip(*fields, strict=True), strict=True))
        texts = {name: pl.Series(column, dtype=pl.String) for name, column in columns.items()}
        yield pl.DataFrame({"number": number, "found": found} | texts)


def _bad_row(row: dict, reason: str, layout: Layout, origin: Origin, *, all_so: bool) -> BadRow:
    """The error for a row; `all_so` if every row of its frame has the same mistake."""
    number = origin.before + row["number"]
    if origin.plain is None:
        where = f"{origin.shown}: row {number}"
        content = repr([row[name] for name in layout.columns])
    else:
        with open(origin.plain, encoding="utf-8-sig", errors="replace", newline="\n") as lines:
            line = next(itertools.islice(lines, row["number"] - 1, None))
        where, content = f"{origin.shown}:{number}", repr(line.rstrip("\r\n"))
    content = content if len(content) <= 200 else f"{content[:200]}..."
    remedy = _remedy(row, reason, layout, all_so=all_so)
    if row["found"] != origin.fields:
        reason = (
            f"{row['found']} fields instead of {origin.fields}"
            if row["found"]
            else "not a JSON object"
        )
    return BadRow(f"{where}: {reason} in {content}; {remedy}")


def _remedy(row: dict, reason: str, layout: Layout, *, all_so: bool) -> str:
    """What to do about a bad row; to leave rows out is no help where all of them are bad."""
    name, _, mistake = reason.partition(" is ")
    if mistake == "after the year 2100" and (
        hint := times.late_hint(row["timestamp"], layout.unit)
    ):
        return hint
    if not all_so:
        compared = " or data.actions, which compares this column," * (name in layout.numbers)
        return f"correct the row{compared} or set data.on_bad_row=skip"
    if reason == _FIELDS:
        return "all rows are so: is data.delimiter what stands between their fields?"
    if name == "time":
        return f"all rows are so: column {layout.time!r} has to have {times.FORMS}"
    if mistake == "not 0 or 1":
        return f"all rows are so: data.actions may compare this column, as LABEL={name}>=1"
    if name == "rating":
        return "all rows are so: data.rating_column has to name a column of numbers"
    if name in layout.numbers:
        return "all rows are so: data.actions compares this column, which has to have numbers"
    column = layout.user if "user" in reason else layout.item
    return f"all rows are so: is {column!r} the right column?"
