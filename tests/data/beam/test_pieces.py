"""Pieces of raw files: any size gives the rows and facts of the file, and its bad rows by line."""

import dataclasses
import gzip
import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.beam import pieces
from gr_jax.data.log import formats, raw_log
from gr_jax.data.log.layout import BadRow
from tests.data.read_log import read_log

SIZES = (30, 1 << 20)


def rows(seed: int, number: int = 60) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        f"u{rng.integers(9)},{rng.integers(20)},{rng.integers(50)},{rng.integers(1, 6)}"
        for _ in range(number)
    ]


def put(file: Path, lines: list[str], end: str = "\n") -> Path:
    text = end.join(["user_id,item_id,timestamp,stars", *lines]) + end * (
        len(lines) % 2
    )  # or no break at the end
    content = text.encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def in_pieces(
    config: DataConfig, scratch: Path, size: int
) -> tuple[pl.DataFrame | None, pieces.Facts, int]:
    """The events of all pieces in order, what they say together, and how many there were."""
    raw = formats.unpacked(config, formats.find(config), scratch)
    facts, events, count = [], [], 0
    for number in range(len(raw.logs)):
        some, fact = pieces.split(config, raw, number, scratch, size)
        facts.append(fact)
        for piece in pickle.loads(pickle.dumps(some)):
            part, fact = pieces.read(piece, config)
            facts.append(pickle.loads(pickle.dumps(fact)))
            if part is not None:
                events.append(part)
        count += len(some)
    facts = pieces.numbered(pieces.together(reversed(facts)))
    pieces.checked(facts, raw)
    return pl.concat(events) if events else None, facts, count


def same_events(log: raw_log.Log, events: pl.DataFrame) -> bool:
    whole = log.events.with_columns(pl.col("user", "item").cast(pl.String))
    return whole.equals(events.with_columns(pl.col("^rating$").fill_null(float("nan"))))


FORMATS = {
    "csv": "csv",
    "csv.gz": "csv",
    "parquet": "parquet",
    "jsonl": "amazon-2023",
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("end, source", FORMATS.items())
def test_pieces_of_any_size_are_the_file(tmp_path, end, source, size):
    names = {"item_id": "parent_asin", "stars": "rating"} if source == "amazon-2023" else {}
    for number in range(1 if source == "amazon-2023" else 2):
        file = put(tmp_path / f"{number}.{end}", rows(number))
        if end in ("parquet", "jsonl"):
            frame = pl.read_csv(file).with_columns(pl.col("timestamp") + 10**12 * (end == "jsonl"))
            (frame.write_parquet if end == "parquet" else frame.rename(names).write_ndjson)(file)
    config = DataConfig(source=source, path=str(tmp_path), rating_column="stars")
    config = dataclasses.replace(config, actions=(f"good={names.get('stars', 'stars')}>=4",))
    log = read_log(config)
    events, facts, count = in_pieces(config, tmp_path, size)
    assert same_events(log, events)
    assert facts.items["events"].sum() == log.events.height
    time = log.events["timestamp"]
    assert facts.times == (time.min(), time.max())
    assert facts.integers == (False, True)
    assert count == len(formats.find(config).logs) if size == SIZES[-1] else count > 20


def test_lines_may_end_as_on_windows(tmp_path):
    put(tmp_path / "log.csv", rows(0), "\r\n")
    config = DataConfig(source="csv", path=str(tmp_path))
    events, *_ = in_pieces(config, tmp_path, 1)
    assert same_events(read_log(config), events)


@pytest.mark.parametrize("size", SIZES)
def test_a_bad_row_is_told_with_its_line_in_the_file(tmp_path, size):
    lines = rows(0)
    lines[30], lines[50] = "u1,5,noon,3", ",5,7,3"
    put(tmp_path / "a.csv", rows(1))
    put(tmp_path / "b.csv", lines)
    put(tmp_path / "c.csv", ["u1,1"])
    config = DataConfig(source="csv", path=str(tmp_path), rating_column="stars")
    with pytest.raises(BadRow) as whole:
        read_log(config)
    with pytest.raises(BadRow) as piecewise:
        in_pieces(config, tmp_path, size)
    assert str(piecewise.value) == str(whole.value)
    assert "b.csv:32" in str(whole.value)


@pytest.mark.parametrize("size", SIZES)
def test_bad_rows_are_left_out_and_counted_in_every_piece(tmp_path, size):
    lines = rows(0)
    lines[3], lines[30], lines[31], lines[50] = "u1,5,noon,3", "u1", "", "u1,5,-7,"
    put(tmp_path / "a.csv", lines)
    cut = put(tmp_path / "b.csv.gz", rows(4))
    cut.write_bytes(cut.read_bytes()[:-30])
    config = DataConfig(source="csv", path=str(tmp_path), rating_column="stars", on_bad_row="skip")
    log = read_log(config)
    events, facts, _ = in_pieces(config, tmp_path, size)
    assert same_events(log, events)
    assert dict(sorted(facts.skipped.items())) == log.skipped
    assert facts.skipped["truncated gzip file"] == 1


def test_a_file_with_quotes_is_one_piece(tmp_path):
    put(tmp_path / "a.csv", ['u1,1,1,"3"', *rows(0)])
    put(tmp_path / "b.csv", ['u1,1,1,"4\n"', "u2,7"])
    config = DataConfig(source="csv", path=str(tmp_path), on_bad_row="skip")
    log = read_log(config)
    events, _, count = in_pieces(config, tmp_path, 1)
    assert same_events(log, events)
    assert count == 2


MISTAKES = {
    "a missing column": (["user_id,item_id,stars\na,b,3\n"], {}),
    "a column missing in the second file": (
        ["user_id,item_id,timestamp\na,b,3\n", "user_id,item_id\na,b\n"],
        {},
    ),
    "a compared column without a value": (
        ["user_id,item_id,timestamp,n\na,b,3,\n"] * 2,
        {"actions": ("x=n>1",)},
    ),
    "seconds taken for milliseconds": (
        ["user_id,item_id,timestamp\na,b,1700000000\n"],
        {"time_unit": "ms"},
    ),
    "an empty file": ([""], {}),
}


@pytest.mark.parametrize("texts, fields", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_of_the_whole_log_is_told_in_the_same_words(tmp_path, texts, fields):
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.csv").write_text(text)
    config = DataConfig(source="csv", path=str(tmp_path), **fields)
    with pytest.raises(ConfigError) as whole:
        read_log(config)
    with pytest.raises(ConfigError) as piecewise:
        in_pieces(config, tmp_path, 1)
    assert str(piecewise.value) == str(whole.value)


def test_a_column_that_is_empty_in_one_piece_only_can_be_compared(tmp_path):
    (tmp_path / "log.csv").write_text(
        "user_id,item_id,timestamp,n\n" + "a,b,3,\n" * 20 + "a,c,4,2\n"
    )
    config = DataConfig(source="csv", path=str(tmp_path), actions=("x=n>1",))
    events, _, count = in_pieces(config, tmp_path, 30)
    assert count > 3
    assert events["action"].sum() == 1


def test_items_are_numbered_as_text_where_one_piece_has_a_text(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,10,3\n2,9,3\n3,07,3\n")
    config = DataConfig(source="csv", path=str(tmp_path))
    _, facts, count = in_pieces(config, tmp_path, 1)
    assert (count, facts.integers) == (3, (True, False))
    assert facts.items["raw"].to_list() == ["07", "10", "9"]
