from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.log import detect, frames
from gr_jax.data.log.preparation import prepare

COLUMNS = {"user_column": "user", "item_column": "item", "time_column": "time"}
USERS, ITEMS = [12, 7, 7, 12], ["b", "a", "b", "c"]
TIMES = [1_600_000_000 + i for i in range(4)]
STAMPS = [datetime.fromtimestamp(time, UTC) for time in TIMES]
PLAIN = {"user": USERS, "item": ITEMS, "time": TIMES}
PANDAS = pd.DataFrame(PLAIN)
TWICE = pd.concat([PANDAS, PANDAS[["user"]]], axis=1)
BERLIN = pd.to_datetime(PANDAS["time"], unit="s", utc=True).dt.tz_convert("Europe/Berlin")
TABLES = {
    "polars": pl.DataFrame(PLAIN),
    "lazy": pl.LazyFrame(PLAIN),
    "narrow types": pl.DataFrame(PLAIN).cast({"user": pl.UInt8, "item": pl.Categorical}),
    "polars date-times with a zone": pl.DataFrame(PLAIN | {"time": STAMPS}),
    "pandas": PANDAS,
    "index": PANDAS.set_index(pd.Index([5, 5, 1, 0], name="row")),
    "categorical and nullable": PANDAS.astype({"user": "Int64", "item": "category"}),
    "integers as categories": PANDAS.astype({"user": "category"}),
    "arrow in pandas": PANDAS.astype({"user": "int64[pyarrow]", "item": "string[pyarrow]"}),
    "zone": PANDAS.assign(time=BERLIN),
    "nanoseconds": PANDAS.assign(time=BERLIN.dt.tz_localize(None).astype("datetime64[ns]")),
    "Python objects": PANDAS.assign(time=np.array(STAMPS, object)).astype({"item": object}),
    "milliseconds": PANDAS.assign(time=PANDAS["time"] * 1000),
    "floats": PANDAS.assign(time=PANDAS["time"] + 0.25),
    "text": PANDAS.assign(time=[stamp.isoformat() for stamp in STAMPS]),
    "pyarrow": pa.table(PLAIN),
    "dictionary": pa.table(PLAIN | {"item": pa.array(ITEMS).dictionary_encode()}),
}


def dataset(table, folder, **changes):
    data = DataConfig(path=str(folder / "events.parquet"), **COLUMNS | changes)
    frames.write_events(table, data, folder / "events.parquet")
    return prepare(detect.described(data))


@pytest.mark.parametrize("name", TABLES)
def test_every_kind_of_table_is_the_same_log(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = dataset(TABLES[name], tmp_path)
    shift = 7200 if name == "nanoseconds" else 0  # the clock of Berlin, without its zone
    assert found.catalogue.users["raw"].to_list() == ["7", "12"]
    assert found.catalogue.items["raw"].to_list() == ["a", "b", "c"]
    assert found.events.item.tolist() == [1, 2, 2, 3]
    assert found.events.timestamp.tolist() == [t + shift for t in (TIMES[i] for i in (1, 2, 0, 3))]


def test_a_table_is_read_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = dataset(TABLES["polars"], tmp_path).hash
    monkeypatch.setattr(
        "narwhals.DataFrame.to_polars", lambda self: (_ for _ in ()).throw(ModuleNotFoundError)
    )
    for name in ("categorical and nullable", "integers as categories", "zone", "Python objects"):
        assert dataset(TABLES[name], tmp_path).hash == expected, name


def test_dates_and_integers_among_text_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    days = [date(2024, 5, 1 + i) for i in range(4)]
    mixed = np.array([12, "x", "x", 12], object)
    found = dataset(PANDAS.assign(time=np.array(days, object), user=mixed), tmp_path)
    assert found.catalogue.users["raw"].to_list() == ["12", "x"]
    assert found.meta["time_min"] == 1_714_521_600


def test_columns_of_actions_come_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = PANDAS.assign(
        is_click=[True, False, True, True], stars=[5.0, None, 2, 4], other=[{}] * 4
    )
    actions = ("click=is_click", "liked=stars>=4")
    found = dataset(table, tmp_path, actions=actions, rating_column="stars")
    assert found.events.action.tolist() == [0, 1, 3, 3]


WRONG = {
    "no column 'user' .user=., only 'who', 'item', 'time'": PANDAS.rename(columns={"user": "who"}),
    "no column 'user' .* 'users', .*did you mean user='users'": PANDAS.rename(
        columns={"user": "users"}
    ),
    "it is the index: .reset_index": PANDAS.set_index("user"),
    "2 of 4 rows have no user .column 'user' is null": PANDAS.assign(user=[1, None, None, 2]),
    "1 of 4 rows have no time": PANDAS.assign(time=[*BERLIN[:3], pd.NaT]),
    "'user' is Float64, not integers or text: cast it": PANDAS.assign(user=[1.0, 2, 3, 4]),
    "'item' is Boolean, not integers or text": PANDAS.assign(item=True),
    "the table is empty": PANDAS.head(0),
    "events is one column .a Series.": PANDAS["user"],
    "events is a dict: expected a table": PLAIN,
    "unique column names, got: - 'user' 2 times; rename the other": pd.concat(
        [PANDAS, PANDAS[["user"]]], axis=1
    ),
    "'time' has values of type dict|'time' is Struct": PANDAS.assign(time=[{"a": 1}] * 4),
    "'item' has values of type float and str": PANDAS.assign(item=["a", 2.5, "b", "c"]),
}


@pytest.mark.parametrize("told", WRONG)
def test_what_is_no_log_is_told_in_a_line(told, tmp_path):
    with pytest.raises(ConfigError, match=f"^events.*{told}|^{told}"):
        frames.write_events(WRONG[told], DataConfig(**COLUMNS), tmp_path / "events.parquet")


def test_rows_without_ids_may_be_skipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = PANDAS.assign(item=["a", None, "b", "c"])
    assert dataset(table, tmp_path, on_bad_row="skip").num_events == 3


def test_a_table_of_items_has_titles_and_features(tmp_path):
    items = pd.DataFrame(
        {"item": ["a", "b"], "title": ["A", "B"], "brand": ["x", "y"], "price": [1.5, 2.5]}
    )
    data, file = DataConfig(**COLUMNS), tmp_path / "items.parquet"
    with pytest.raises(ConfigError, match="items: column 'price' is Float64.*cut it into ranges"):
        frames.write_items(items, data, file)
    assert frames.write_items(items.drop(columns="price"), data, file) == ("brand",)
    assert pl.read_parquet(file).columns == ["item", "brand", "title"]
    assert frames.features_of(file, data) == ("brand",)
    lists = pl.DataFrame({"item": ["a"], "tags": [["x", "y"]]})
    assert frames.write_items(lists, data, file) == ("tags",)
    with pytest.raises(ConfigError, match="items: the table has only items"):
        frames.write_items(items[["item"]], data, file)


@pytest.mark.parametrize("name", ["polars", "narrow types", "categorical and nullable", "pyarrow"])
def test_tables_come_out_as_they_went_in(name, tmp_path):
    like = frames.write_events(TABLES[name], DataConfig(**COLUMNS), tmp_path / "events.parquet")
    table = pl.DataFrame({"user": [7, 12], "similar_item": ["a", "c"], "v": [[1.0], [2.0]]})
    out = frames.as_given(table.cast({"v": pl.Array(pl.Float32, 1)}), like)
    assert type(out) is type(TABLES[name])
    if isinstance(out, pa.Table):
        assert (
            out.column("user").to_pylist() == [7, 12] and out.schema.field("user").type == "int64"
        )
    else:
        given = TABLES[name]
        assert out["user"].dtype == given["user"].dtype
        assert out["similar_item"].dtype == given["item"].dtype or out["user"].dtype == "Int64"
        assert out["user"].to_list() == [7, 12] and list(out["v"][1]) == [2.0]
