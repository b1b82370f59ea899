"""Columns of every type mean the same in text and in Parquet, or are refused in one line."""

import datetime
import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.log import times
from gr_jax.data.log.layout import BadRow
from gr_jax.serving.moments import moment
from tests.data.read_log import read_log

ROWS = 240


def written(folder: Path, kind: str, **columns) -> Path:
    """A log of one kind whose columns are those given, and users, items and times."""
    some = next(iter(columns.values()))
    n = len(some)
    usual = {
        "user_id": [f"u{i % 7}" for i in range(n)],
        "item_id": [f"i{i % 11}" for i in range(n)],
        "timestamp": [1_700_000_000 + i for i in range(n)],
    }
    frame = pl.DataFrame(usual | columns, strict=False)
    file = folder / f"log.{kind}"
    if kind == "parquet":
        frame.write_parquet(file)
    elif kind == "csv":
        frame.write_csv(file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in frame.iter_rows(named=True)))
    return file


def read(file: Path, *, on_bad_row: str = "error", **fields):
    source = "parquet" if file.suffix == ".parquet" else "csv"
    return read_log(DataConfig(source=source, path=str(file), on_bad_row=on_bad_row, **fields))


KINDS = ("csv", "parquet", "jsonl")
FLAGS = {
    "0 and 1": [0, 1],
    "booleans": [False, True],
    "floats": [0.0, 1.0],
    "text": ["0", "1"],
    "words": ["false", "true"],
    "words of pandas": ["False", "True"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_a_flag_is_0_or_1_or_true_or_false_in_every_file(tmp_path, kind, flags):
    file = written(tmp_path, kind, watched=pl.Series(flags * 3))
    log = read(file, actions=("seen=watched",))
    assert log.events["action"].to_list() == [0, 1] * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [0.7, -0.4, 1.6, 2.0, -1.0, None])
def test_what_is_no_flag_is_one_bad_row_of_its_number(tmp_path, kind, wrong):
    values = [float(i % 2) for i in range(ROWS)]
    values[57] = wrong
    file = written(tmp_path, kind, watched=pl.Series(values))
    line = {"csv": ":59", "jsonl": ":58", "parquet": ": row 58"}[kind]
    with pytest.raises(BadRow, match=rf"log\.{kind}{line}: watched is not 0 or 1 in .*u1") as error:
        read(file, actions=("seen=watched",))
    assert str(error.value).endswith("correct the row or set data.on_bad_row=skip")
    log = read(file, actions=("seen=watched",), on_bad_row="skip")
    assert log.events.height == ROWS - 1 and log.skipped == {"watched is not 0 or 1": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_null_among_booleans_is_one_bad_row(tmp_path, kind):
    values = [None if i == 57 else i % 3 == 0 for i in range(ROWS)]
    file = written(tmp_path, kind, watched=pl.Series(values))
    log = read(file, actions=("seen=watched",), on_bad_row="skip")
    assert log.events.height == ROWS - 1 and log.events["action"].sum() == ROWS // 3 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_number_is_no_bad_row_and_an_infinite_one_is(tmp_path, kind):
    stars = pl.Series([1.0, float("nan") if kind != "jsonl" else None, None, 4.5])
    log = read(written(tmp_path, kind, stars=stars), rating_column="stars", actions=("hi=stars>4",))
    assert log.events["action"].to_list() == [0, 0, 0, 1]
    np.testing.assert_array_equal(log.events["rating"].to_numpy(), [1, np.nan, np.nan, 4.5])
    if kind != "jsonl":
        file = written(tmp_path, kind, stars=pl.Series([1.0, float("inf")]))
        with pytest.raises(BadRow, match="rating is not a number in .*inf"):
            read(file, rating_column="stars")


MOMENTS = [datetime.datetime(2023, 11, 14, 22, 13, 20 + i, 250_000) for i in range(3)]
TIMES = {
    "integers": [1_700_000_000 + i for i in range(3)],
    "floats": [1_700_000_000.25 + i for i in range(3)],
    "text of floats": [f"{1_700_000_000 + i}.25" for i in range(3)],
    "decimals": [Decimal(f"{1_700_000_000 + i}.25") for i in range(3)],
    "naive date-times": MOMENTS,
    "date-times with a zone": pl.Series(MOMENTS, dtype=pl.Datetime("us", "UTC")),
    "as polars writes": [f"{m:%Y-%m-%dT%H:%M:%S.%f}" for m in MOMENTS],
    "as polars writes with a zone": [f"{m:%Y-%m-%dT%H:%M:%S.%f}+0000" for m in MOMENTS],
    "as pandas writes": [f"{m:%Y-%m-%d %H:%M:%S.%f}" for m in MOMENTS],
    "as pandas writes with a zone": [f"{m:%Y-%m-%d %H:%M:%S.%f}+00:00" for m in MOMENTS],
    "in another zone": [
        f"{m + datetime.timedelta(hours=5, minutes=30):%Y-%m-%d %H:%M:%S}.25+05:30" for m in MOMENTS
    ],
    "nanoseconds and Z": [f"{m:%Y-%m-%dT%H:%M:%S}.250000000Z" for m in MOMENTS],
    "as databases write": [f"{m:%Y-%m-%d %H:%M:%S.%f} UTC" for m in MOMENTS],
    "categories": pl.Series([f"{m:%Y-%m-%dT%H:%M:%S}" for m in MOMENTS]).cast(pl.Categorical),
}


NUMBERS = ("integers", "floats", "text of floats", "decimals")
# Numbers have the unit of the config, and are given in seconds here.
FORMS = [(f, u) for f in TIMES for u in ("s", "ms", "us", "ns") if u == "s" or f not in NUMBERS]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(("form", "unit"), FORMS)
def test_times_in_every_form_are_the_same_moments(tmp_path, kind, form, unit):
    column = TIMES[form]
    frame = pl.DataFrame({"timestamp": column})
    events = read(written(tmp_path, kind, timestamp=frame["timestamp"]), time_unit=unit).events
    second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    quarter = 0 if "." not in str(column[0]) and frame["timestamp"].dtype != pl.Datetime else 0.25
    whole = [(1_700_000_000 + i) * second + int(quarter * second) for i in range(3)]
    assert events["timestamp"].to_list() == whole
    if unit == "s" and quarter:
        np.testing.assert_allclose(events["fraction"].to_numpy(), 0.25, atol=1e-6)
    else:
        assert "fraction" not in events.columns


@pytest.mark.parametrize("bad", ["2024-02-30", "2024-5-1", "12:30:00", "01/05/2024", "1 day", "x"])
def test_text_that_is_no_time_is_a_bad_row(tmp_path, bad):
    good = ["2024-05-01", "2024-05-01T12:30Z", bad, "2024-05-02 08:00:00-03"]
    for kind in KINDS:
        file = written(tmp_path, kind, timestamp=good)
        with pytest.raises(BadRow, match=f"time is not a number in .*{bad}"):
            read(file)
        kept = read(file, on_bad_row="skip").events["timestamp"].to_list()
        assert kept == [1714521600, 1714566600, 1714647600]


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_whole_column_has_another_form_the_remedy_is_that_form(tmp_path, kind):
    file = written(tmp_path, kind, timestamp=[f"{day:02}/05/2024 10:00" for day in range(1, 9)])
    with pytest.raises(
        BadRow, match="all rows are so: column 'timestamp' .* 2024-05-01T12:30"
    ) as e:
        read(file)
    assert "on_bad_row" not in str(e.value)


NO_TIMES = {
    "Duration": pl.Series([datetime.timedelta(days=19_000, seconds=i) for i in range(3)]),
    "Time": pl.Series([datetime.time(10, i) for i in range(3)]),
    "Boolean": pl.Series([True, False, True]),
    "List": pl.Series([[1], [2], [3]]),
    "Float32": pl.Series([1.7e9, 1.7e9 + 200, 1.7e9 + 300], dtype=pl.Float32),
}


@pytest.mark.parametrize("kind", NO_TIMES)
def test_a_column_of_a_type_that_is_no_time_is_refused_whole(tmp_path, kind):
    file = written(tmp_path, "parquet", timestamp=NO_TIMES[kind])
    for on_bad_row in ("error", "skip"):
        message = rf"log\.parquet: column 'timestamp' is {kind}"
        with pytest.raises(ConfigError, match=message) as error:
            read(file, on_bad_row=on_bad_row)
        assert "\n" not in str(error.value)


def test_small_times_in_float32_are_exact(tmp_path):
    file = written(tmp_path, "parquet", timestamp=pl.Series([0.5, 7.0], dtype=pl.Float32))
    assert read(file).events["timestamp"].to_list() == [0, 7]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_infinite_and_absent_times_are_named(tmp_path, kind):
    values = [1.7e9, float("inf"), float("nan"), None]
    file = written(tmp_path, kind, timestamp=pl.Series(values))
    with pytest.raises(BadRow, match="(row 2|:3): time is infinite in .*inf"):
        read(file)
    skipped = read(file, on_bad_row="skip").skipped
    assert skipped == {"time is infinite": 1, "time is not a number": 2}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("size", "unit"),
    [(10**3, "milliseconds.*=ms"), (10**6, "microseconds.*=us"), (10**9, "nanoseconds.*=ns")],
)
def test_times_in_a_finer_unit_are_recognised_and_named(tmp_path, kind, size, unit):
    file = written(tmp_path, kind, timestamp=[1_700_000_000 * size + i for i in range(9)])
    with pytest.raises(BadRow, match=f"looks like {unit}"):
        read(file)
    found = read(file, time_unit=unit[-2:]).events["timestamp"]
    assert found.to_list() == [1_700_000_000 * size + i for i in range(9)]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_times_in_a_coarser_unit_are_recognised_and_named(tmp_path, unit):
    file = written(tmp_path, "csv", timestamp=[1_700_000_000 + i for i in range(9)])
    with pytest.raises(ConfigError, match=r"in 1970: it looks like seconds; .*time_unit=s$"):
        read(file, time_unit=unit)


def test_days_written_as_one_number_are_not_taken_for_seconds(tmp_path):
    file = written(tmp_path, "csv", timestamp=[20240501, 20240502])
    with pytest.raises(ConfigError, match="looks like the day 2024-05-02"):
        read(file)
    file = written(tmp_path, "csv", timestamp=[20240501103000, 20240502103000])
    with pytest.raises(BadRow, match="looks like 2024-05-01 and a clock"):
        read(file)


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ({"user_id": [1.0, 2.0]}, "'user_id' is Float64, not integers or strings"),
        ({"item_id": [True, False]}, "'item_id' is Boolean, not integers or strings"),
        ({"stars": NO_TIMES["Duration"][:2]}, "'stars' is Duration.*, not numbers"),
        ({"stars": [True, False]}, "'stars' is Boolean, not numbers"),
        ({"watched": NO_TIMES["Duration"][:2], "stars": [1, 2]}, "'watched' is Duration.*, not 0"),
    ],
)
def test_a_column_of_a_type_that_cannot_be_meant_is_refused(tmp_path, column, told):
    file = written(tmp_path, "parquet", **column)
    actions = ("seen=watched",) if "watched" in column else ()
    stars = "stars" if "stars" in column else ""
    with pytest.raises(ConfigError, match=told):
        read(file, rating_column=stars, actions=actions)


def test_hashes_of_64_bits_are_ids(tmp_path):
    users = pl.Series([2**64 - 1, 3], dtype=pl.UInt64)
    file = written(tmp_path, "parquet", user_id=users)
    assert read(file).events["user"].to_list() == ["18446744073709551615", "3"]


TEXTS = [
    "2024-05-01",
    "2024-05-01T12:30",
    "2024-05-01 12:30:00",
    "2024-05-01T12:30:00.123456789Z",
    "2024-05-01 12:30:00,5 +02:00",
    "2024-05-01 12:30:00-0330",
    "2024-05-01t12:30:00z",
    "2024-02-30",
    "2024-05-01T25:00",
    "yesterday",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_of_a_time_means_the_same_in_a_log_and_in_a_request(text):
    whole, *rest = times.split(pl.Series([text]), "s", where="here")
    try:
        asked = moment(text)
    except ValueError:
        assert whole.to_list() == [None]
    else:
        assert whole.to_list() == [asked.seconds]
        assert [r.to_list() for r in rest] == [[asked.fraction]] * bool(asked.fraction)
