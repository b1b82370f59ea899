"""A raw log in pieces that workers read one by one, and the facts that the pieces add up to.

A piece is some whole lines of a text file, or some rows of a Parquet file. A text file with a
double quote in it is one piece, since a quoted field may hold a line break; own logs of that kind
are best written as several files.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data import ids
from gr_jax.data.log import actions, bad_rows, parse, raw_log
from gr_jax.data.log.formats import RawFiles
from gr_jax.data.log.layout import Layout

SIZE = 64 << 20  # bytes of text in a piece
_ROW_BYTES = 32  # assumed for a row of a Parquet file
_BLOCK = 1 << 22
_IDS = ("user", "item")


@dataclass(frozen=True)
class Piece:
    """Part of one raw file."""

    place: tuple[int, int]  # (file, piece of the file): the order of places is that of the log
    shown: Path  # the raw file
    plain: Path  # the same, decompressed
    layout: Layout  # of the file; of a part of a text file without header line
    start: int = 0  # first byte, or row of Parquet
    stop: int | None = None  # None = to the end of the file
    before: int = 0  # lines or rows of the file before the piece


@dataclass(frozen=True)
class Facts:
    """Facts about the whole log from a piece or several."""

    layouts: dict[int, Layout] = field(default_factory=dict)  # number of the file -> its layout
    skipped: Counter = field(default_factory=Counter)  # reason -> bad rows left out
    # the first in the order of the log, and its place
    error: tuple[tuple[int, int], ConfigError] | None = None
    integers: tuple[bool, bool] = (True, True)  # True if all ids of users, of items are integers
    times: tuple[int, int] | None = None  # the first and the last, in the unit of the log
    filled: frozenset[str] = frozenset()  # columns with a value somewhere
    items: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(schema={"raw": pl.String, "events": pl.Int64})
    )


def together(facts: Iterable[Facts]) -> Facts:
    """Facts of several pieces as one; the order of `facts` only decides the order of the items."""
    facts = [Facts(), *facts]
    errors = [some.error for some in facts if some.error is not None]
    counts = pl.concat([some.items for some in facts]).group_by("raw").agg(pl.col("events").sum())
    spans = [some.times for some in facts if some.times is not None]
    return Facts(
        layouts={number: layout for some in facts for number, layout in some.layouts.items()},
        skipped=sum((some.skipped for some in facts), Counter()),
        error=min(errors, key=lambda error: error[0], default=None),
        integers=(all(some.integers[0] for some in facts), all(some.integers[1] for some in facts)),
        times=(min(t[0] for t in spans), max(t[1] for t in spans)) if spans else None,
        filled=frozenset().union(*(some.filled for some in facts)),
        items=counts,
    )


def numbered(facts: Facts) -> Facts:
    """The same with the items in the order of their codes 0.., which is that of `ids.encode`."""
    order = ids.arg_order(facts.items["raw"], integers=facts.integers[1])
    return dataclasses.replace(facts, items=facts.items[order])


def checked(facts: Facts, raw: RawFiles) -> Layout:
    """The layout of the log; raises the first error of reading it at once (ConfigError, BadRow)."""
    if facts.error is not None:
        raise facts.error[1]
    layout = raw_log.common_layout([facts.layouts[i] for i in range(len(raw.logs))], raw)
    raw_log.check_unit(*(facts.times or (None, None)), layout, raw)
    if facts.items.height:
        actions.check_filled(layout.actions, layout.action_columns, facts.filled)
    return layout


def split(
    config: DataConfig, raw: RawFiles, number: int, scratch: Path, size: int
) -> tuple[list[Piece], Facts]:
    """Pieces of about `size` bytes of one log file; gzip files are decompressed into `scratch`."""
    file = raw.logs[number]
    piece = Piece((number, 0), file, file, raw.layout)
    try:
        if config.source == "parquet":
            pieces, skipped = _split_rows(piece, size // _ROW_BYTES), Counter()
        else:
            folder = Path(tempfile.mkdtemp(dir=scratch))  # a worker may have to begin again
            plain, skipped = raw_log.plain_text(config, file, folder)
            layout = raw_log.resolved(config, plain, raw.layout)
            piece = dataclasses.replace(piece, plain=plain, layout=layout)
            pieces = _split_lines(piece, size)
    except ConfigError as error:
        return [], Facts(error=((number, -1), error))
    return pieces, Facts(layouts={number: piece.layout}, skipped=skipped)


def _split_rows(whole: Piece, size: int) -> list[Piece]:
    try:
        height = pl.scan_parquet(whole.plain).select(pl.len()).collect().item()
    except (pl.exceptions.PolarsError, OSError):
        return [whole]  # reading it raises the error
    starts = range(0, max(height, 1), max(size, 1))
    return [
        dataclasses.replace(
            whole, place=(whole.place[0], i), start=start, stop=start + starts.step, before=start
        )
        for i, start in enumerate(starts)
    ]


def _split_lines(whole: Piece, size: int) -> list[Piece]:
    layout, json = whole.layout, whole.plain.suffix == ".jsonl"
    if not json and layout.quoted and bad_rows.has_quote(whole.plain):
        return [whole]
    start, before = 0, 0
    if not json and not layout.names:
        names = tuple(parse.header(whole.plain, layout.separator))
        parse.check_columns(names, layout, whole.shown)
        layout = dataclasses.replace(layout, names=names)
        with open(whole.plain, "rb") as file:
            start, before = len(file.readline()), 1
    pieces = []
    for stop, lines in _ends(whole.plain, start, size):
        place = (whole.place[0], len(pieces))
        pieces.append(
            dataclasses.replace(
                whole, place=place, layout=layout, start=start, stop=stop, before=before
            )
        )
        start, before = stop, before + lines
    return pieces


def _ends(plain: Path, start: int, size: int) -> Iterator[tuple[int, int]]:
    """Ends of the pieces of a text file, after a line break or at the end, and their lines."""
    with open(plain, "rb") as file:
        file.seek(start)
        at, began, lines = start, start, 0
        while block := file.read(min(_BLOCK, max(size, 1))):
            if at + len(block) - began >= size:
                block += file.readline()
            at, lines = at + len(block), lines + block.count(b"\n")
            if at - began >= size and block.endswith(b"\n"):
                yield at, lines
                began, lines = at, 0
        if at > began:
            yield at, lines


def read(piece: Piece, config: DataConfig) -> tuple[pl.DataFrame | None, Facts]:
    """Events of a piece in file order, ids as strings, and their facts; no events if in error."""
    try:
        events, skipped = _read(piece, config)
        filled = frozenset(
            name for name in events.columns if events[name].null_count() < events.height
        )
        events = raw_log.usual_columns(events, piece.layout.actions, piece.layout.action_columns)
    except ConfigError as error:
        return None, Facts(error=(piece.place, error))
    events = events.cast(dict.fromkeys(_IDS, pl.String))
    items = events.group_by(raw="item").agg(events=pl.len().cast(pl.Int64))
    integers = (ids.are_integers(events["user"].unique()), ids.are_integers(items["raw"]))
    time = events["timestamp"]
    span = (time.min(), time.max()) if events.height else None
    facts = Facts(skipped=skipped, integers=integers, times=span, filled=filled, items=items)  # type: ignore[arg-type]
    return events, facts


def _read(piece: Piece, config: DataConfig) -> tuple[pl.DataFrame, Counter]:
    how = {"on_bad_row": config.on_bad_row, "before": piece.before}
    if config.source == "parquet":
        count = None if piece.stop is None else piece.stop - piece.start
        return parse.read_parquet(piece.plain, piece.layout, **how, rows=count)
    how["shown"] = piece.shown
    read = parse.read_jsonl if piece.plain.suffix == ".jsonl" else parse.read_text
    if piece.stop is None:
        return read(piece.plain, piece.layout, **how)
    with tempfile.NamedTemporaryFile(prefix="gr_jax-", suffix=piece.plain.suffix) as part:
        with open(piece.plain, "rb") as file:
            file.seek(piece.start)
            left = piece.stop - piece.start
            while left:
                left -= part.write(file.read(min(left, _BLOCK)))
        part.flush()
        return read(Path(part.name), piece.layout, **how)
