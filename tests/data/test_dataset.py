"""The prepared dataset: order, ids, round trips, reuse, and damage that is never taken for data."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.config import ConfigError, DataConfig, SyntheticConfig
from gr_jax.data.dataset import Dataset, write
from gr_jax.data.log import preparation, synthetic
from gr_jax.data.log.preparation import prepare

Event = tuple[str, str, int]


def raw_csv(folder: Path, events: list[Event]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{user},{item},{time}\n" for user, item, time in events)
    (folder / "log.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    return folder


def make(tmp_path: Path, events: list[Event], **fields) -> Dataset:
    raw = raw_csv(tmp_path / "raw", events)
    return prepare(
        DataConfig(source="csv", path=str(raw), prepared=str(tmp_path / "prepared"), **fields)
    )


def histories(dataset: Dataset) -> dict[str, list[tuple[str, int]]]:
    """Raw user -> [(raw item, time)], in order."""
    items = dataset.catalogue.raw_items(dataset.events.item)
    spans = zip(
        dataset.catalogue.raw_users(np.arange(dataset.num_users)),
        dataset.events.offsets,
        dataset.events.offsets[1:],
        strict=False,
    )
    return {
        u: list(zip(items[a:b], dataset.events.timestamp[a:b].tolist(), strict=True))
        for u, a, b in spans
    }


def test_events_are_sorted_by_user_and_time_and_ties_keep_file_order(tmp_path):
    events = [
        ("b", "x", 5),
        ("a", "z", 7),
        ("b", "y", 3),
        ("a", "y", 7),
        ("b", "w", 3),
        ("a", "x", 7),
    ]
    dataset = make(tmp_path, events)
    assert histories(dataset) == {
        "a": [("z", 7), ("y", 7), ("x", 7)],
        "b": [("y", 3), ("w", 3), ("x", 5)],
    }
    assert dataset.events.lengths.tolist() == [3, 3]


@settings(deadline=None, max_examples=50)  # each writes files
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 5)),
        min_size=1,
        max_size=30,
    )
)
def test_the_dataset_is_the_stably_sorted_log(tmp_path_factory, events):
    dataset = make(tmp_path_factory.mktemp("log"), events, duplicates="keep")
    expected = {
        u: [(i, t) for v, i, t in sorted(events, key=lambda e: e[2]) if v == u] for u in "abc"
    }
    assert histories(dataset) == {user: history for user, history in expected.items() if history}


def test_times_too_wide_for_one_sort_key_sort_the_same():
    rng = np.random.default_rng(0)
    user = rng.integers(0, 2**31 - 1, 1000).astype(np.int32) // 2**27
    time = rng.integers(0, 5, 1000)
    narrow = preparation.stable_order(user, time)
    user[0] = 2**31 - 2
    wide = preparation.stable_order(user, time * 2**33)
    assert (wide[wide != 0] == narrow[narrow != 0]).all() and wide[-1] == 0


def test_milliseconds_order_events_of_the_same_second(tmp_path):
    events = [("a", "x", 1452647382900), ("a", "y", 1452647382100)]
    dataset = make(tmp_path, events, time_unit="ms")
    assert histories(dataset) == {"a": [("y", 1452647382), ("x", 1452647382)]}


def test_integer_ids_are_numbered_numerically_and_others_as_text(tmp_path):
    dataset = make(tmp_path / "numbers", [("10", "100", 1), ("9", "20", 2)])
    assert dataset.catalogue.items["raw"].to_list() == ["20", "100"]
    assert dataset.catalogue.users["raw"].to_list() == ["9", "10"]
    dataset = make(tmp_path / "texts", [("10", "100", 1), ("9", "020", 2), ("9", "20", 2)])
    assert dataset.catalogue.items["raw"].to_list() == ["020", "100", "20"], (
        "020 and 20 are two items"
    )


def test_raw_ids_and_titles_round_trip(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n7,30,4.5,10\n8,4,,20\n")
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n4,"Naïve, The",x\n99,Never rated,x\n'
    )
    dataset = prepare(
        DataConfig(source="ml-20m", path=str(tmp_path), prepared=str(tmp_path / "out"))
    )
    assert dataset.num_items == 2, "the catalogue is what occurs in the log"
    ids = dataset.catalogue.item_ids([30, "4", "99"])
    assert ids.tolist() == [2, 1, 0] and ids.dtype == np.int32
    assert dataset.catalogue.raw_items(ids[:2]) == ["30", "4"]
    assert dataset.catalogue.titles(ids[:2]) == [None, "Naïve, The"]
    assert dataset.catalogue.user_index(8) == 1 and dataset.catalogue.raw_users(np.array([1])) == [
        "8"
    ]
    assert dataset.events.rating is not None
    np.testing.assert_array_equal(dataset.events.rating, np.array([4.5, np.nan], np.float32))
    with pytest.raises(ConfigError, match="no user '9'.*7, 8"):
        dataset.catalogue.user_index(9)


def test_columns_and_meta_say_what_is_in_the_log(tmp_path):
    dataset = make(tmp_path, [("a", "x", 5), ("a", "y", 9), ("b", "x", 7), ("a", "x", 6)])
    assert dataset.events.offsets.tolist() == [0, 3, 4] and dataset.events.item.tolist() == [
        1,
        1,
        2,
        1,
    ]
    assert (
        dataset.events.offsets.dtype,
        dataset.events.item.dtype,
        dataset.events.timestamp.dtype,
    ) == (
        np.int64,
        np.int32,
        np.int64,
    )
    assert dataset.events.rating is None and dataset.events.action is None
    meta = json.loads((dataset.folder / "meta.json").read_text())
    expected = {
        "version": 2,
        "source": "csv",
        "users": 2,
        "items": 2,
        "events": 4,
        "unit": "s",
        "skipped": {},
    }
    expected |= {
        "time_min": 5,
        "time_max": 9,
        "mean_length": 2.0,
        "median_length": 2.0,
        "max_length": 3,
    }
    assert {name: meta[name] for name in expected} == expected


def test_actions_and_skipped_rows_are_kept(tmp_path):
    names = "user_id,video_id,time_ms,is_click,is_like,is_follow,is_comment,is_forward"
    names += ",is_hate,long_view"
    rows = "1,5,1650600000000,1,0,0,0,0,0,1\n1,5,x,1,0,0,0,0,0,1\n1,6,1650500000000,0,1,0,0,0,0,0\n"
    (tmp_path / "log_standard_1.csv").write_text(f"{names}\n{rows}")
    config = DataConfig(
        source="kuairand", path=str(tmp_path), prepared=str(tmp_path / "out"), on_bad_row="skip"
    )
    dataset = prepare(config)
    assert dataset.events.action is not None and dataset.events.action.tolist() == [0b10, 0b1000001]
    assert dataset.meta["actions"][6] == "long_view"
    assert dataset.meta["skipped"] == {"time is not a number": 1}
    assert dataset.events.timestamp.tolist() == [1650500000, 1650600000]


def test_filters_renumber_what_is_left(tmp_path):
    events = [
        ("a", "x", 1),
        ("a", "y", 2),
        ("b", "x", 3),
        ("b", "y", 4),
        ("c", "x", 5),
        ("d", "w", 6),
    ]
    dataset = make(tmp_path, events, filter="k_core", min_events=2)
    assert histories(dataset) == {"a": [("x", 1), ("y", 2)], "b": [("x", 3), ("y", 4)]}
    assert dataset.events.item.tolist() == [1, 2, 1, 2] and dataset.num_items == 2
    with pytest.raises(
        ConfigError, match="no events after data.filter=one_pass with data.min_events=9"
    ):
        make(tmp_path / "none", events, filter="one_pass", min_events=9)
    with pytest.raises(ConfigError, match="no events; 6 rows skipped: item_id is not a number$"):
        make(tmp_path / "skipped", events, actions=("big=item_id>4",), on_bad_row="skip")


def test_a_dataset_pickles_as_its_path(tmp_path):
    dataset = make(tmp_path, [("a", "x", 1), ("a", "y", 2)])
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again.folder == dataset.folder and (again.events.item == dataset.events.item).all()


def test_columns_are_mapped_not_read(tmp_path):
    dataset = make(tmp_path, [("a", "x", 1)])
    for column in (dataset.events.offsets, dataset.events.item, dataset.events.timestamp):
        assert (
            type(column) is np.ndarray
            and isinstance(column.base, np.memmap)
            and not column.flags.writeable
        )


def test_the_same_log_and_settings_are_prepared_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = DataConfig(source="csv", path=str(raw_csv(tmp_path / "raw", [("a", "x", 1)])))
    first = prepare(config)
    assert first.folder.parent == Path("data/prepared") and first.folder.name.startswith("csv-")
    monkeypatch.setattr(preparation, "_build", None)
    assert prepare(config).folder == first.folder
    assert (
        prepare(DataConfig(source="csv", path=config.path, max_length=7)).folder == first.folder
    ), "layout only"


def test_a_changed_file_or_setting_is_another_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = raw_csv(tmp_path / "raw", [("a", "x", 1), ("a", "y", 2)])
    config = DataConfig(source="csv", path=str(raw))
    folders = {prepare(config).folder}
    folders.add(
        prepare(DataConfig(source="csv", path=str(raw), filter="k_core", min_events=1)).folder
    )
    raw_csv(raw, [("a", "x", 1), ("a", "y", 3), ("b", "x", 4)])
    folders.add(prepare(config).folder)
    assert len(folders) == 3


def test_a_log_is_its_content_and_not_its_name_time_or_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = raw_csv(tmp_path / "raw", [("a", "x", 1), ("a", "y", 2)]) / "log.csv"
    first, times = prepare(DataConfig(path=str(file))), file.stat()
    (tmp_path / "moved").mkdir()
    moved = file.rename(tmp_path / "moved" / "clicks.csv")
    os.utime(moved, ns=(1, 1))
    assert prepare(DataConfig(path=str(moved))).folder == first.folder

    raw_csv(tmp_path / "raw", [("a", "y", 1), ("a", "x", 2)])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_size == times.st_size
    changed = prepare(DataConfig(path=str(file)))
    assert histories(changed) == {"a": [("y", 1), ("x", 2)]}, "not the dataset of the log before"
    assert changed.hash != first.hash


def test_a_log_that_grows_while_it_is_read_is_told_and_leaves_no_dataset(tmp_path):
    file = raw_csv(tmp_path / "raw", [("a", "x", 1)]) / "log.csv"

    def build(*args):
        dataset = preparation._build(*args)
        with file.open("a") as log:
            log.write("a,y,2\n")
        return dataset

    config = DataConfig(path=str(file), prepared=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"log\.csv: changed while it was read"):
        prepare(config, build=build)
    assert prepare(config).num_events == 2


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owners here")
def test_a_folder_that_another_user_made_is_taken_only_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = raw_csv(tmp_path / "raw", [("a", "x", 1)]) / "log.csv"
    folder = prepare(DataConfig(path=str(file))).folder
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    monkeypatch.setattr(preparation, "_ROOT", -1)
    with pytest.raises(
        ConfigError, match=f"{folder}: another user made it; data.prepared={folder}"
    ):
        prepare(DataConfig(path=str(file)))
    assert prepare(DataConfig(path=str(file), prepared=str(folder))).num_events == 1


def test_a_named_folder_prepared_otherwise_is_refused_and_says_why(tmp_path):
    events = [("a", "x", 1), ("a", "y", 2)]
    make(tmp_path, events)
    with pytest.raises(ConfigError, match=r"prepared otherwise: filter='k_core' \(was 'none'\)"):
        make(tmp_path, events, filter="k_core", min_events=1)
    with pytest.raises(ConfigError, match="the raw files changed since"):
        make(tmp_path, [*events, ("b", "x", 4)])
    (tmp_path / "raw" / "log.csv").unlink()
    path = str(tmp_path / "raw")
    moved = prepare(DataConfig(source="csv", path=path, prepared=str(tmp_path / "prepared")))
    assert moved.num_events == 2, "a prepared folder needs no raw log"
    with pytest.raises(ConfigError, match=r"prepared otherwise: filter='k_core' \(was 'none'\)"):
        prepare(
            DataConfig(
                source="csv", path=path, prepared=str(tmp_path / "prepared"), filter="k_core"
            )
        )


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="exists already"):
        make(tmp_path, [("a", "x", 1)])
    assert (tmp_path / "prepared" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("step", ["save", "write_parquet", "dumps", "rename"])
def test_an_interrupted_write_leaves_no_dataset(tmp_path, monkeypatch, step):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    where = {"save": np, "write_parquet": pl.DataFrame, "dumps": json, "rename": os}[step]
    with monkeypatch.context() as patch:
        patch.setattr(where, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            columns = {
                "offsets": np.array([0, 1]),
                "item": np.array([1]),
                "timestamp": np.array([9]),
            }
            write(tmp_path / "prepared", columns=columns, raw_users=["a"], raw_items=["x"])
    assert not list(tmp_path.iterdir())


def test_of_two_writers_of_the_same_contents_the_later_uses_the_first(tmp_path, monkeypatch):
    columns = {"offsets": np.array([0, 1]), "item": np.array([1]), "timestamp": np.array([9])}
    rename = os.rename

    def written(folder: Path, user: str, title: str) -> Dataset:
        return write(folder, columns=columns, raw_users=[user], raw_items=["x"], titles=[title])

    def after_another(source, target):
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            written(target, "a", "first")
        rename(source, target)

    monkeypatch.setattr(os, "rename", after_another)
    dataset = written(tmp_path / "prepared", "a", "later")
    assert dataset.catalogue.titles(np.array([1])) == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]
    with pytest.raises(ConfigError, match="exists already"):
        written(tmp_path / "other", "b", "later")


def test_the_generated_log_is_a_source(tmp_path):
    config = DataConfig(
        source="synthetic", prepared=str(tmp_path / "a"), synthetic=SyntheticConfig(50, 200, 20.0)
    )
    dataset = prepare(config)
    assert (
        dataset.num_users == 50
        and dataset.num_events == synthetic.generate(config.synthetic).height
    )
    with pytest.raises(ConfigError, match="prepared otherwise: synthetic="):
        other = SyntheticConfig(51, 200, 20.0)
        prepare(DataConfig(source="synthetic", prepared=str(tmp_path / "a"), synthetic=other))


@pytest.mark.parametrize(
    ("source", "folder", "counts"),
    [
        ("ml-1m", "ml-1m", (6040, 3706, 1_000_209)),
        ("ml-100k", "ml-100k", (943, 1682, 100_000)),
        ("amazon-2014", "amazon-beauty-5core", (22_363, 12_101, 198_502)),
    ],
)
def test_real_logs_have_their_published_counts(tmp_path, shared_data, source, folder, counts):
    dataset = prepare(
        DataConfig(source=source, path=str(shared_data(folder)), prepared=str(tmp_path / "out"))
    )
    assert (dataset.num_users, dataset.num_items, dataset.num_events) == counts
    gaps = np.diff(dataset.events.timestamp)
    gaps[dataset.events.offsets[1:-1] - 1] = 0  # between users
    assert (
        (gaps >= 0).all()
        and dataset.events.item.min() == 1
        and dataset.events.item.max() == dataset.num_items
    )
