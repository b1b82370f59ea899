"""Fractions and date-times order events that share a unit of time, in every format."""

import datetime
import itertools
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from gr_jax.config import DataConfig
from gr_jax.data.beam import pieces, shards
from gr_jax.data.dataset import Dataset
from gr_jax.data.log import formats
from gr_jax.data.log.preparation import prepare
from tests.data.read_log import read_log

LATE, EARLY = 1_700_000_000.9, 1_700_000_000.1
MOMENTS = [datetime.datetime(2023, 11, 14, 22, 13, 20, us) for us in (900_000, 100_000)]


def prepared(folder: Path, **fields) -> Dataset:
    return prepare(
        DataConfig(path=str(folder / "raw"), prepared=str(folder / "prepared"), **fields)
    )


def items(dataset: Dataset) -> list[str]:
    """Raw ids of all events, user by user."""
    return dataset.catalogue.items["raw"].gather(dataset.events.item - 1).to_list()


def put(folder: Path, name: str, text: str) -> None:
    (folder / "raw").mkdir(exist_ok=True)
    (folder / "raw" / name).write_text(text)


def csv(*rows: str) -> str:
    return "\n".join(["user_id,item_id,timestamp", *rows, ""])


@pytest.mark.parametrize("bad", ["", "A,never,noon\n"])
def test_fractions_of_a_text_order_events(tmp_path, bad):
    put(tmp_path, "log.csv", csv(f"A,late,{LATE}", f"A,early,{EARLY}", "A,first,1700000000") + bad)
    dataset = prepared(tmp_path, source="csv", on_bad_row="skip")
    assert items(dataset) == ["first", "early", "late"]
    assert dataset.events.timestamp.tolist() == [1_700_000_000] * 3


def test_fractions_of_json_order_events(tmp_path):
    lines = [
        f'{{"user_id": "A", "item_id": "{name}", "timestamp": {time}}}'
        for name, time in (("l", LATE), ("e", EARLY))
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    dataset = prepare(
        DataConfig(
            source="csv", path=str(tmp_path / "log.jsonl"), prepared=str(tmp_path / "prepared")
        )
    )
    assert items(dataset) == ["e", "l"]


COLUMNS = {
    "floats": pl.Series([LATE, EARLY]),
    "strings": pl.Series([str(LATE), str(EARLY)]),
    "decimals": pl.Series([Decimal("1700000000.9"), Decimal("1700000000.1")]),
    **{
        f"date-times in {unit}": pl.Series(MOMENTS, dtype=pl.Datetime(unit))
        for unit in ("ms", "us", "ns")
    },
    "date-times with a zone": pl.Series(MOMENTS, dtype=pl.Datetime("us", "UTC")),
    "date-times a nanosecond apart": pl.Series(
        [1_700_000_000 * 10**9 + 1, 1_700_000_000 * 10**9]
    ).cast(pl.Datetime("ns")),
}


@pytest.mark.parametrize("with_bad_row", [False, True])
@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_fractions_and_date_times_of_parquet_order_events(tmp_path, column, with_bad_row):
    (tmp_path / "raw").mkdir()
    frame = pl.DataFrame({"user_id": ["A", "A"], "item_id": ["late", "early"], "timestamp": column})
    if with_bad_row:
        frame = pl.concat([frame, frame[:1].with_columns(user_id=pl.lit(None, pl.String))])
    frame.write_parquet(tmp_path / "raw" / "log.parquet")
    dataset = prepared(tmp_path, source="parquet", on_bad_row="skip")
    assert items(dataset) == ["early", "late"]
    assert dataset.events.timestamp.tolist() == [1_700_000_000] * 2


def test_fractions_of_a_millisecond_order_events_too(tmp_path):
    put(tmp_path, "log.csv", csv("A,late,1700000000000.9", "A,early,1700000000000.1"))
    assert items(prepared(tmp_path, source="csv", time_unit="ms")) == ["early", "late"]


def test_series_are_ordered_by_fractions_also_between_them(tmp_path):
    put(tmp_path, "log.csv", csv("a,x,1700000001"))
    put(tmp_path, "mood.txt", f"user_id,timestamp,mood\na,{LATE},bad\na,{EARLY},good\n")
    put(tmp_path, "place.txt", "user_id,timestamp,place\na,1700000000.5,out\na,1700000000,in\n")
    dataset = prepared(tmp_path, source="csv", series=("mood=mood.txt", "place=place.txt"))
    assert (
        dataset.events.series_value is not None
        and dataset.events.series_time is not None
        and dataset.catalogue.features is not None
    )
    names = dataset.catalogue.features["value"].gather(dataset.events.series_value - 1)
    assert names.to_list() == ["in", "good", "out", "bad"]
    assert dataset.events.series_time.tolist() == [1_700_000_000] * 4


def random_log(seed: int, files: int) -> list[list[tuple[str, str, str]]]:
    """Files of (user, item, time), every other one with fractions; items count up in the log."""
    rng, number = np.random.default_rng(seed), itertools.count(1)
    return [
        [
            (
                f"u{rng.integers(4)}",
                f"{next(number)}",
                f"{rng.integers(3)}" + f".{rng.integers(100):02}" * (file % 2),
            )
            for _ in range(25)
        ]
        for file in range(files)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_files_of_which_only_some_have_fractions_are_one_ordered_log_whole_and_in_shards(
    tmp_path, seed
):
    log = random_log(seed, files=3)
    for number, rows in enumerate(log):
        put(tmp_path, f"{number}.csv", csv(*(",".join(row) for row in rows)))
    rows = sorted(
        (row for file in log for row in file), key=lambda row: (row[0], float(row[2]))
    )  # stable
    dataset = prepared(tmp_path, source="csv")
    assert items(dataset) == [item for _, item, _ in rows]
    assert dataset.events.timestamp.tolist() == [int(float(time)) for *_, time in rows]
    config = DataConfig(source="csv", path=str(tmp_path / "raw"))
    raw = formats.unpacked(config, formats.find(config), tmp_path)
    blocks, facts = [], []
    for number in range(3):
        for piece in pieces.split(config, raw, number, tmp_path, 50)[0]:
            events, fact = pieces.read(piece, config)
            blocks, facts = [*blocks, (piece.place, events)], [*facts, fact]
    assert len(blocks) > 9
    whole = pieces.numbered(pieces.together(facts))
    shards.write(tmp_path, 0, reversed(blocks), whole, "s", drop_repeats=False)
    columns, _ = shards.merge(
        [tmp_path / "shard-0"], np.arange(1, 76, dtype=np.int32), tmp_path, integers=False
    )
    np.testing.assert_array_equal(columns["item"], dataset.events.item)
    np.testing.assert_array_equal(columns["timestamp"], dataset.events.timestamp)
    assert columns.keys() == {"item", "timestamp", "offsets"}


def test_files_of_which_only_some_have_fractions_may_have_ratings(tmp_path):
    for name, time in (("a", "7"), ("b", "6.5"), ("c", "2024-05-01T12:30:00.5")):
        put(tmp_path, f"{name}.csv", f"user_id,item_id,timestamp,stars\nA,{name},{time},3\n")
    assert items(prepared(tmp_path, source="csv", rating_column="stars")) == ["b", "a", "c"]


def test_an_integer_log_has_no_fractions(tmp_path):
    put(tmp_path, "log.csv", csv("A,x,7", "A,y,8.0", "A,z,noon"))
    config = DataConfig(source="csv", path=str(tmp_path / "raw"), on_bad_row="skip")
    assert read_log(config).events.columns == [
        "user",
        "item",
        "timestamp",
    ]
