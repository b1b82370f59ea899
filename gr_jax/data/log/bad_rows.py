"""Lines of a raw file as strings, to find the bad ones: raise at the first, or count them.

A frame of rows has the columns of the layout as strings, `number` (of the line, from 1) and
`found` (fields of that line; other values are null where it is not the number expected); of
Parquet also `fraction` (see `times`), if any.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl

from gr_jax.data.log import times
from gr_jax.data.log.layout import PER_SECOND, BadRow, Layout

_CHUNK_ROWS = 1 << 18  # rows held as Python strings at once
_CHUNK_BYTES = 1 << 24


def sift(
    frames: Iterable[pl.DataFrame],
    layout: Layout,
    *,
    plain: Path | None,
    shown: Path,
    expected: int,
    on_bad_row: str,
    before: int = 0,
) -> tuple[pl.DataFrame, Counter]:
    """Typed events of frames of rows, and the number of bad rows by reason.

    Args:
      plain: the text file to quote a line from; None = the rows have no lines.
      shown: the file to name in errors.
      expected: fields of a good row.
      before: lines or rows of the shown file before the first of `frames`.

    Raises:
      BadRow: at the first bad row, if on_bad_row is "error".
    """
    skipped: Counter = Counter()
    chunks = [pl.DataFrame(schema=layout.types | {times.FRACTION: pl.Float64})]
    for rows in frames:
        reason = rows.select(_reason(layout, expected))["reason"]
        bad = reason.is_not_null()
        if on_bad_row == "error" and bad.any():
            first = int(bad.arg_max())  # type: ignore[arg-type]
            raise _bad_row(
                rows.row(first, named=True),
                str(reason[first]),
                layout,
                plain,
                shown,
                expected,
                before,
            )
        skipped.update(reason.drop_nulls().to_list())
        chunks.append(_typed(rows.filter(~bad), layout))
    return times.without_zeros(pl.concat(chunks)), skipped


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


def _reason(layout: Layout, expected: int) -> pl.Expr:
    """The mistake of a line of strings, or null."""
    chain = pl.when(pl.col("found") != expected).then(pl.lit("wrong number of fields"))
    for name in ("user", "item"):
        text = pl.col(name)
        chain = chain.when(text.fill_null("").str.strip_chars() == "").then(
            pl.lit(f"empty {name} id")
        )
        chain = chain.when(text.str.contains("\ufffd|\n")).then(
            pl.lit(f"{name} id is not one line of UTF-8 text")
        )
        if layout.integer_ids:
            number = text.cast(pl.Int64, strict=False)
            chain = chain.when(number.is_null()).then(pl.lit(f"{name} id is not an integer"))
    time = times.integer_time(pl.col("timestamp"))
    chain = chain.when(time.is_null()).then(pl.lit("time is not a number"))
    chain = chain.when(time < 0).then(pl.lit("time is negative"))
    chain = chain.when(time > layout.last_time).then(pl.lit("time is after the year 2100"))
    for name in layout.optional:
        given = pl.col(name).fill_null("") != ""
        finite = pl.col(name).cast(layout.types[name], strict=False).is_finite().fill_null(False)
        chain = chain.when(given & ~finite).then(
            pl.lit(f"{name.removeprefix('number:')} is not a number")
        )
    for name in layout.flags:
        bit = pl.col(f"action:{name}").cast(pl.Int8, strict=False).is_between(0, 1).fill_null(False)
        chain = chain.when(~bit).then(pl.lit(f"{name} is not 0 or 1"))
    return chain.otherwise(None).alias("reason")


def _typed(rows: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    kinds = layout.types
    casts = {
        name: pl.col(name).cast(kind, strict=name not in layout.optional)
        for name, kind in kinds.items()
    }
    time = pl.col("timestamp")
    known = times.FRACTION in rows.columns  # of Parquet
    fraction = pl.col(times.FRACTION).cast(pl.Float64) if known else times.fraction(time)
    return rows.select(
        *(casts | {"timestamp": times.integer_time(time), times.FRACTION: fraction}).values()
    )


def _bad_row(
    row: dict,
    reason: str,
    layout: Layout,
    plain: Path | None,
    shown: Path,
    expected: int,
    before: int,
) -> BadRow:
    number = row["number"]
    if plain is None:
        where, content = (
            f"{shown}: row {before + number}",
            repr([row[name] for name in layout.columns]),
        )
    else:
        with open(plain, encoding="utf-8-sig", errors="replace", newline="\n") as lines:
            content = repr(next(itertools.islice(lines, number - 1, None)).rstrip("\r\n"))
        where = f"{shown}:{before + number}"
    content = content if len(content) <= 200 else f"{content[:200]}..."
    remedy = "correct the row or set data.on_bad_row=skip"
    if row["found"] != expected:
        reason = (
            f"{row['found']} fields instead of {expected}" if row["found"] else "not a JSON object"
        )
    elif reason.removesuffix(" is not a number") in layout.numbers:
        remedy = (
            "correct the row or data.actions, which compares this column, or set"
            " data.on_bad_row=skip"
        )
    elif reason == "time is after the year 2100" and layout.unit == "s":
        if float(row["timestamp"]) <= layout.last_time * PER_SECOND["ms"]:
            remedy = (
                "it looks like milliseconds: data.source=csv reads those with data.time_unit=ms"
            )
    return BadRow(f"{where}: {reason} in {content}; {remedy}")
