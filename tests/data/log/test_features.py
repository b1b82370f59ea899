"""Attributes and series as numbers: one vocabulary, 0 for unknown, equal values in a run once."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.dataset import Dataset
from gr_jax.data.log.preparation import prepare

LOG = "user_id,item_id,timestamp\nb,y,10\na,x,20\nb,x,30\nc,z,40\n"


def make(folder, *, files: dict[str, str], log: str = LOG, **fields) -> Dataset:
    (folder / "raw").mkdir(exist_ok=True)
    for name, text in ({"log.csv": log} | files).items():
        (folder / name if name.startswith("other") else folder / "raw" / name).write_text(text)
    return prepare(
        DataConfig(
            source="csv",
            path=str(folder / "raw" / "log.csv"),
            prepared=str(folder / "out"),
            **fields,
        )
    )


def named(dataset: Dataset, values) -> list[str]:
    """feature=value of value ids; 0 is left out."""
    table = dataset.catalogue.features
    assert table["value_id"].to_list() == list(range(1, dataset.catalogue.num_feature_values + 1))
    return [f"{table['feature'][int(v) - 1]}={table['value'][int(v) - 1]}" for v in values if v]


def test_user_attributes_stand_in_the_order_of_the_config_with_zero_for_unknown(tmp_path):
    text = "sex,user_id,age\nF,a,30\n ,b,9\nF,nobody,30\nM,nobody2,31\nF,a,9\n"
    dataset = make(
        tmp_path, files={"who.csv": text}, user_file="who.csv", user_features=("age", "sex")
    )
    assert (
        dataset.events.user_features is not None and dataset.events.user_features.dtype == np.int32
    )
    assert dataset.events.user_features.tolist() == [[2, 3], [1, 0], [0, 0]]
    assert named(dataset, dataset.events.user_features[0]) == ["age=30", "sex=F"], (
        "the first row of a user counts"
    )
    assert dataset.catalogue.features["value"].to_list() == ["9", "30", "F"], (
        "numbers in order, unknown users give no value"
    )
    assert dataset.meta["skipped"] == {
        "repeated user in who.csv": 1,
        "user without events in who.csv": 2,
    }
    assert (
        dataset.meta["user_features"] == ["age", "sex"] and dataset.catalogue.item_features is None
    )


def test_items_have_several_values_padded_on_the_right_and_row_zero_is_empty(tmp_path):
    text = "item_id,tags,brand\nx, red | blue|red|,acme\nz,|,\nunsold,green,acme\n"
    dataset = make(
        tmp_path, files={"what.csv": text}, item_file="what.csv", item_features=("tags", "brand")
    )
    assert (
        dataset.catalogue.item_features is not None
        and dataset.catalogue.item_features.shape == (4, 3)
    )
    rows = {
        raw: named(dataset, dataset.catalogue.item_features[i]) for i, raw in enumerate("xyz", 1)
    }
    assert rows == {"x": ["tags=red", "tags=blue", "brand=acme"], "y": [], "z": []}
    assert (
        not dataset.catalogue.item_features[0].any() and dataset.catalogue.num_feature_values == 3
    )
    assert dataset.meta["skipped"] == {"item without events in what.csv": 1}


def test_items_without_any_value_have_one_column_of_zeros(tmp_path):
    dataset = make(
        tmp_path, files={"i.csv": "item_id,tag\nx,\n"}, item_file="i.csv", item_features=("tag",)
    )
    assert (
        dataset.catalogue.item_features is not None
        and dataset.catalogue.item_features.tolist() == [[0]] * 4
    )
    assert dataset.catalogue.num_feature_values == 0 and dataset.catalogue.features.height == 0


def test_the_same_text_of_two_features_is_two_values_and_of_one_name_is_one(tmp_path):
    files = {
        "who.csv": "user_id,sex,country\na,F,de\nb,F,us\n",
        "what.csv": "item_id,for,country\nx,F,de\n",
        "moves.csv": "timestamp,country,user_id\n5,de,c\n",
    }
    dataset = make(
        tmp_path,
        files=files,
        user_file="who.csv",
        user_features=("sex", "country"),
        item_file="what.csv",
        item_features=("for", "country"),
        series=("country=moves.csv",),
    )
    pairs = list(
        zip(dataset.catalogue.features["feature"], dataset.catalogue.features["value"], strict=True)
    )
    assert pairs == [("sex", "F"), ("country", "de"), ("country", "us"), ("for", "F")]
    assert dataset.events.series_value is not None and dataset.events.series_value.tolist() == [2]
    assert dataset.catalogue.item_features is not None and dataset.catalogue.item_features[
        1
    ].tolist() == [4, 2]


def test_series_are_merged_by_time_and_keep_the_first_of_each_run(tmp_path):
    files = {
        "country.csv": "user_id,timestamp,country\nb,9,us\nb,1,de\nb,5,de\nb,9.7,de\n"
        "nobody,1,fr\nc,4,de\n",
        "other_device.csv": "device,user_id,timestamp\ntv,b,9\ntv,b,10\nphone,b,11\n",
    }
    series = ("country=country.csv", f"device={tmp_path}/other_device.csv")
    dataset = make(tmp_path, files=files, series=series)
    assert (
        dataset.events.series_offsets is not None
        and dataset.events.series_value is not None
        and dataset.events.series_time is not None
    )
    assert dataset.events.series_offsets.tolist() == [0, 0, 5, 6], "users a, b, c"
    assert named(dataset, dataset.events.series_value) == [
        *("country=de", "country=us", "device=tv", "country=de", "device=phone"),
        "country=de",
    ]
    assert (
        dataset.events.series_time.tolist() == [1, 9, 9, 9, 11, 4]
        and dataset.events.series_time.dtype == np.int64
    )
    assert dataset.meta["series"] == ["country", "device"] and dataset.meta["series_entries"] == 6
    assert dataset.meta["skipped"] == {"user without events in country.csv": 1}


@settings(deadline=None, max_examples=25)  # each writes files
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.sampled_from("pq")),
        min_size=1,
        max_size=20,
    ),
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.sampled_from("pq")),
        min_size=1,
        max_size=20,
    ),
)
def test_compressed_series_tell_the_same_value_at_every_time_as_the_files(
    tmp_path_factory, first, second
):
    folder = tmp_path_factory.mktemp("series")
    files = {}
    for name, rows in (("s", first), ("t", second)):
        files[f"{name}.csv"] = f"user_id,timestamp,{name}\n" + "".join(
            f"{u},{t},{v}\n" for u, t, v in rows
        )
    dataset = make(folder, files=files, series=("s=s.csv", "t=t.csv"))
    assert (
        dataset.events.series_offsets is not None
        and dataset.events.series_value is not None
        and dataset.events.series_time is not None
    )
    for user, raw in enumerate("ab"):
        span = slice(dataset.events.series_offsets[user], dataset.events.series_offsets[user + 1])
        entries = list(
            zip(
                dataset.events.series_time[span],
                named(dataset, dataset.events.series_value[span]),
                strict=True,
            )
        )
        expected = []
        for name, rows in (("s", first), ("t", second)):
            run = None
            for _, time, value in sorted(
                (row for row in rows if row[0] == raw), key=lambda row: row[1]
            ):
                if value != run:
                    expected.append((time, f"{name}={value}"))
                run = value
        assert entries == sorted(expected, key=lambda entry: entry[0])


def test_milliseconds_of_a_series_order_it_before_they_are_cut_off(tmp_path):
    log = "user_id,item_id,timestamp\na,x,1452647382000\n"
    text = "user_id,timestamp,mood\na,1452647382900,bad\na,1452647382100,good\n"
    dataset = make(
        tmp_path, log=log, files={"mood.csv": text}, series=("mood=mood.csv",), time_unit="ms"
    )
    assert dataset.events.series_time is not None and dataset.events.series_value is not None
    assert named(dataset, dataset.events.series_value) == ["mood=good", "mood=bad"]
    assert dataset.events.series_time.tolist() == [1452647382] * 2


def test_a_file_in_which_nobody_is_known_is_an_error_that_shows_both_sides(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"who\.csv: no user of the log in it; it has '1', '2', ..., the log has 'a', 'b'",
    ):
        make(
            tmp_path,
            files={"who.csv": "user_id,age\n1,9\n2,9\n"},
            user_file="who.csv",
            user_features=("age",),
        )
    with pytest.raises(ConfigError, match=r"what\.csv: no item of the log in it; it has none, "):
        make(
            tmp_path,
            files={"what.csv": "item_id,tag\n"},
            item_file="what.csv",
            item_features=("tag",),
        )
    with pytest.raises(ConfigError, match=r"s\.csv: no user of the log in it"):
        make(tmp_path, files={"s.csv": "user_id,timestamp,s\nq,1,2\n"}, series=("s=s.csv",))


def test_what_a_filter_removes_has_no_features(tmp_path):
    files = {"who.csv": "user_id,age\na,1\nb,2\nc,3\n", "what.csv": "item_id,tag\nx,p\ny,q\nz,r\n"}
    own = dict(
        user_file="who.csv", user_features=("age",), item_file="what.csv", item_features=("tag",)
    )
    dataset = make(tmp_path, files=files, filter="k_core", min_events=1, **own)
    assert dataset.catalogue.num_feature_values == 6
    other = tmp_path / "filtered"
    other.mkdir()
    log = LOG + "b,y,50\nb,x,60\nc,y,70\n"
    dataset = make(other, files=files, log=log, filter="one_pass", min_events=3, **own)
    assert dataset.catalogue.raw_users(np.arange(dataset.num_users)) == ["b"]
    assert dataset.catalogue.features.rows() == [(1, "age", "2"), (2, "tag", "p"), (3, "tag", "q")]
    assert (
        dataset.catalogue.item_features is not None
        and dataset.catalogue.item_features.tolist() == [[0], [2], [3]]
    )


def test_columns_of_features_are_mapped(tmp_path):
    files = {"who.csv": "user_id,age\na,1\n", "s.csv": "user_id,timestamp,s\na,1,2\na,2,3\n"}
    dataset = make(
        tmp_path, files=files, user_file="who.csv", user_features=("age",), series=("s=s.csv",)
    )
    assert dataset.events.user_features is not None and dataset.events.series_value is not None
    assert isinstance(dataset.events.user_features.base, np.memmap) and isinstance(
        dataset.events.series_value.base, np.memmap
    )
    assert dataset.catalogue.features.height == 3


def test_a_dataset_without_features_says_so(tmp_path):
    dataset = make(tmp_path, files={})
    assert (
        dataset.catalogue.num_feature_values == 0
        and dataset.catalogue.actions == ()
        and dataset.catalogue.features.height == 0
    )
    assert dataset.catalogue.features.schema == {
        "value_id": pl.Int32,
        "feature": pl.String,
        "value": pl.String,
    }
    assert (
        dataset.events.user_features is None
        and dataset.catalogue.item_features is None
        and dataset.events.series_offsets is None
    )


def test_users_and_items_that_a_file_does_not_have_are_counted(tmp_path):
    log = "user_id,item_id,timestamp\n" + "".join(f"u{i % 9},i{i},{i}\n" for i in range(90))
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "log.csv").write_text(log)
    (raw / "i.csv").write_text("item_id,title,tag\ni1,One,a\ni2,,b\ni200,None,c\n")
    (raw / "u.csv").write_text("user_id,age\nu1,3\nu1,4\n")
    (raw / "s.csv").write_text("user_id,timestamp,s\nu1,1,2\nu8,2,3\n")
    files = dict(user_file="u.csv", item_file="i.csv", series=("s=s.csv",))
    features = dict(user_features=("age",), item_features=("tag",))
    place = dict(path=str(raw / "log.csv"), prepared=str(tmp_path / "out"))
    dataset = prepare(DataConfig(**place, **files, **features))
    assert dataset.meta["missing"] == {
        "items without a title": 89,
        "items not in i.csv": 88,
        "users not in u.csv": 8,
        "users not in s.csv": 7,
    }
    plain = DataConfig(path=place["path"], prepared=str(tmp_path / "plain"))
    assert prepare(plain).meta["missing"] == {}
