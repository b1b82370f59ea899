"""Files of attributes and series: public formats, own files, archives, one line a mistake."""

import dataclasses
import datetime
import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pytest

from gr_jax.config import ConfigError, DataConfig, SyntheticConfig
from gr_jax.config import files as config_files
from gr_jax.data.dataset import Dataset
from gr_jax.data.log import attributes, formats
from gr_jax.data.log.layout import BadRow
from gr_jax.data.log.preparation import prepare
from tests.data.read_log import read_log

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
LOG = "user_id,item_id,timestamp\na,x,10\nb,y,20\n"
KUAIRAND_LOG = "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,long_view\n"
KUAIRAND_USERS = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
    "register_days_range," + ",".join(f"onehot_feat{i}" for i in range(18)) + "\n"
)
KUAIRAND_VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag\n"
)


def put(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, "latin-1")
    return folder


def own(folder: Path, files: dict[str, str], **fields) -> attributes.Attributes:
    put(folder, {"log.csv": LOG} | files)
    config = DataConfig(source="csv", path=str(folder / "log.csv"), **fields)
    return read_log(config).attributes


def values(dataset: Dataset, ids) -> list[str]:
    return [dataset.catalogue.features["value"][int(i) - 1] for i in ids if i]


def kuairand(folder: Path) -> Path:
    user = '9,full_active,0,0,1,5,"(0,10]",3,"[1,10)",0,0,107,61-90,0,1,17,638,1,'
    user += ",0,1,0,0,1,0,,0,0,0,0,0\n"
    return put(
        folder,
        {
            "log_standard_4_08_to_4_21_1k.csv": KUAIRAND_LOG
            + "9,31,20220408,900,1649375512388,1,0,0,1\n7,32,20220408,900,1649375512389,0,0,0,0\n",
            "user_features_1k.csv": KUAIRAND_USERS + user,
            "video_features_basic_1k.csv": KUAIRAND_VIDEOS
            + '31,55,NORMAL,2022-04-01,ShortImport,1,9000.0,720,1280,3,9.0,"12,65"\n'
            + "32,56,AD,2022-04-02,Web,1,,720,1280,4,,\n99,56,AD,2022-04-02,Web,1,,720,1280,4,,8\n",
        },
    )


KUAIRAND = dict(
    source="kuairand",
    actions=("click=is_click", "long=long_view"),
    user_features=("user_active_degree", "follow_user_num_range", "onehot_feat4", "onehot_feat2"),
    item_features=("tag", "author_id", "video_type", "music_type"),
)


def check_kuairand(dataset: Dataset) -> None:
    assert dataset.events.user_features is not None and dataset.catalogue.item_features is not None
    assert not dataset.events.user_features[dataset.catalogue.user_index(7)].any()
    assert values(dataset, dataset.events.user_features[dataset.catalogue.user_index(9)]) == [
        "full_active",
        "(0,10]",
        "1",
        "17",
    ]
    videos = [values(dataset, row) for row in dataset.catalogue.item_features]
    assert videos == [[], ["12", "65", "55", "NORMAL", "9.0"], ["56", "AD"]]
    assert dataset.catalogue.actions == ("click", "long") and sorted(
        dataset.events.action.tolist()
    ) == [0, 3]  # type: ignore
    assert dataset.meta["skipped"] == {"item without events in video_features_basic_1k.csv": 1}


def test_kuairand_users_and_videos_with_several_tags(tmp_path):
    folder = kuairand(tmp_path / "raw" / "KuaiRand-1K" / "data")
    dataset = prepare(
        DataConfig(path=str(tmp_path / "raw"), prepared=str(tmp_path / "out"), **KUAIRAND)
    )
    check_kuairand(dataset)
    (folder / "user_features_2.csv").write_text("")
    with pytest.raises(
        ConfigError,
        match=r"several files \(user_features_1k.csv, user_features_2.csv\) beside the log",
    ):
        prepare(DataConfig(path=str(tmp_path / "raw"), prepared=str(tmp_path / "out2"), **KUAIRAND))


def test_the_ranking_config_of_kuairand_reads_the_official_columns(tmp_path):
    folder = kuairand(tmp_path / "raw")
    names = [
        "is_click",
        "is_like",
        "is_follow",
        "is_comment",
        "is_forward",
        "is_hate",
        "long_view",
        "is_profile_enter",
    ]
    header = f"user_id,video_id,date,hourmin,time_ms,{','.join(names)},tab\n"
    row = "9,31,20220408,900,1649375512388,1,0,0,0,0,0,1,1,4\n"
    put(folder, {"log_standard_4_08_to_4_21_1k.csv": header + row})
    config = config_files.load(f"{CONFIGS}/kuairand.py:ranking").data
    config = dataclasses.replace(
        config, path=str(folder), prepared=str(tmp_path / "out"), min_events=1
    )
    dataset = prepare(config)
    assert (
        dataset.events.user_features is not None
        and dataset.catalogue.item_features is not None
        and dataset.events.action is not None
    )
    assert [
        dataset.catalogue.actions[i] for i in range(8) if dataset.events.action[0] >> i & 1
    ] == [
        "click",
        "long_view",
        "profile",
    ]
    assert values(dataset, dataset.events.user_features[0])[:3] == ["full_active", "0", "1"]
    assert values(dataset, dataset.catalogue.item_features[1]) == [
        "12",
        "65",
        "NORMAL",
        "ShortImport",
    ]


def test_files_in_the_archive_as_downloaded_are_found(tmp_path):
    folder = kuairand(tmp_path / "raw")
    with tarfile.open(tmp_path / "KuaiRand-1K.tar.gz", "w:gz") as archive:
        for file in folder.iterdir():
            archive.add(file, f"KuaiRand-1K/data/{file.name}")
    path = str(tmp_path / "KuaiRand-1K.tar.gz")
    check_kuairand(prepare(DataConfig(path=path, prepared=str(tmp_path / "out"), **KUAIRAND)))
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "1::1193::5::978300760\n")
    config = DataConfig(source="ml-1m", path=str(tmp_path / "ml-1m.zip"), user_features=("age",))
    with pytest.raises(ConfigError, match=r"no file users\.dat beside the log"):
        prepare(config)


def test_own_files_are_csv_gzip_or_parquet_with_the_columns_of_the_log(tmp_path):
    (tmp_path / "who.csv.gz").write_bytes(gzip.compress(b"age,who\n30,a\n"))
    moved = {
        "who": ["a", "b"],
        "when": [datetime.datetime(1970, 1, 1, 0, 1), None],
        "home": ["x", "y"],
    }
    pl.DataFrame(moved).write_parquet(tmp_path / "home.parquet")
    tags = {"what": ["y"], "tags": [["p", "", "q"]], "price": [2.5]}
    pl.DataFrame(tags).write_parquet(tmp_path / "what.parquet")
    (tmp_path / "log.csv").write_text("who,what,when\na,x,10\nb,y,20\n")
    fields = dict(
        user_file="who.csv.gz",
        user_features=("age",),
        item_file="what.parquet",
        series=("home=home.parquet",),
    )
    names = dict(
        user_column="who", item_column="what", time_column="when", item_features=("tags", "price")
    )
    config = DataConfig(
        source="csv", path=str(tmp_path / "log.csv"), on_bad_row="skip", **fields, **names
    )
    found = read_log(config).attributes
    assert found.users is not None and found.users.rows.rows() == [("a", "30")]
    assert found.items is not None and found.items.rows.rows() == [("y", ["p", "q"], ["2.5"])]
    assert found.series[0].rows.rows() == [("a", 60, "x", 0.0)]
    assert found.skipped == {"time is not a number in home.parquet": 1}
    with pytest.raises(BadRow, match=r"home\.parquet: row 2: time is not a number"):
        prepare(
            DataConfig(
                source="csv", path=config.path, prepared=str(tmp_path / "out"), **fields, **names
            )
        )


def test_features_may_be_called_like_any_column(tmp_path):
    names = ("raw", "code", "value", "feature", "0", "place", "user_id")
    text = ",".join(names) + "\n" + ",".join(["r", "c", "v", "f", "0", "p", "a"]) + "\n"
    put(tmp_path, {"log.csv": LOG, "who.csv": text, "s.csv": "user_id,timestamp,value\na,1,2\n"})
    fields = dict(user_file="who.csv", user_features=names, series=("value=s.csv",))
    path = str(tmp_path / "log.csv")
    dataset = prepare(DataConfig(source="csv", path=path, prepared=str(tmp_path / "out"), **fields))
    assert dataset.events.user_features is not None
    assert values(dataset, dataset.events.user_features[0]) == ["r", "c", "v", "f", "0", "p", "a"]


def test_an_own_file_of_attributes_goes_with_a_public_log(tmp_path):
    put(
        tmp_path,
        {"ratings.dat": "1::1193::5::978300760\n", "mine.csv": "movieId,tag\n1193,deep|dark\n"},
    )
    config = DataConfig(
        source="ml-1m", path=str(tmp_path), item_file="mine.csv", item_features=("tag",)
    )
    found = read_log(config).attributes
    assert found.items is not None and found.items.rows.rows() == [("1193", ["deep", "dark"])]


def titles(dataset) -> dict[str, str | None]:
    return dict(zip(dataset.catalogue.items["raw"], dataset.catalogue.items["title"], strict=True))


def test_a_title_column_of_the_own_file_of_items_names_them_with_and_without_features(tmp_path):
    put(
        tmp_path,
        {
            "log.csv": LOG,
            "what.csv": "tag,title,item_id\nred, The Thing ,x\nblue,,y\nred,again,x\n",
        },
    )
    path = str(tmp_path / "log.csv")
    for name, features in (("plain", ()), ("featured", ("tag",))):
        options = dict(prepared=str(tmp_path / name), item_file="what.csv", item_features=features)
        dataset = prepare(DataConfig(source="csv", path=path, **options))
        assert titles(dataset)["x"] == "The Thing" and set(titles(dataset).values()) == {
            "The Thing",
            None,
        }
        assert (dataset.catalogue.item_features is None) == (not features)


def test_titles_come_from_parquet_with_numbers_as_ids_too(tmp_path):
    put(tmp_path, {"log.csv": "user_id,item_id,timestamp\na,7,10\n"})
    pl.DataFrame({"item_id": [7, 8], "title": ["Seven", "Eight"]}).write_parquet(
        tmp_path / "what.parquet"
    )
    options = dict(path=str(tmp_path / "log.csv"), prepared=str(tmp_path / "out"))
    assert titles(prepare(DataConfig(source="csv", item_file="what.parquet", **options))) == {
        "7": "Seven"
    }


def test_an_own_file_goes_before_the_titles_of_a_public_format(tmp_path):
    files = {
        "ratings.dat": "1::1193::5::978300760\n",
        "movies.dat": "1193::Official (1975)::Drama\n",
    }
    put(tmp_path, files | {"mine.csv": "movieId,title\n1193,Mine\n"})
    options = dict(source="ml-1m", path=str(tmp_path))
    assert titles(prepare(DataConfig(**options, prepared=str(tmp_path / "a")))) == {
        "1193": "Official (1975)"
    }
    own_file = DataConfig(**options, prepared=str(tmp_path / "b"), item_file="mine.csv")
    assert titles(prepare(own_file)) == {"1193": "Mine"}


MISTAKES = {
    "a file of items without use": (
        dict(item_file="what.csv"),
        {"what.csv": "item_id,tag\nx,red\n"},
        r"data\.item_file='what\.csv': no column 'title' in it and no features wanted; "
        "name columns of it in data",
    ),
    "a user column": (
        dict(user_file="who.csv", user_features=("age",)),
        {"who.csv": "user,age\na,1\n"},
        r"who\.csv: no user column 'user_id', only 'user', 'age'; did you mean 'user'\?",
    ),
    "an attribute": (
        dict(user_file="who.csv", user_features=("aeg",)),
        {"who.csv": "user_id,age\na,1\n"},
        r"no data\.user_features column 'aeg', only 'user_id', 'age'; did you mean 'age'\?",
    ),
    "an item column": (
        dict(item_file="what.csv", item_features=("tag",)),
        {"what.csv": "tag\n1\n"},
        "no item column 'item_id', only 'tag'",
    ),
    "a time column": (
        dict(series=("s=s.csv",)),
        {"s.csv": "user_id,when,s\na,1,2\n"},
        "no time column 'timestamp', only",
    ),
    "a series": (
        dict(series=("s=s.csv",)),
        {"s.csv": "user_id,timestamp,v\na,1,2\n"},
        "no data.series column 's'",
    ),
    "a file": (
        dict(user_file="nobody.csv", user_features=("age",)),
        {},
        r"data\.user_file='nobody\.csv': no file .*nobody\.csv; "
        "name it relative to the folder of the log, or in full",
    ),
    "a file of a series": (
        dict(series=("s=nothing.csv",)),
        {},
        r"data\.series: s=nothing\.csv: no file",
    ),
    "a setting": (
        dict(item_features=("tag",)),
        {},
        r"data\.item_features=\('tag',\): data.source=csv has no file of them; set data\.item_file",
    ),
    "content": (
        dict(user_file="who.csv", user_features=("age",)),
        {"who.csv": ""},
        r"who\.csv: empty file",
    ),
    "Parquet": (
        dict(user_file="who.parquet", user_features=("age",)),
        {"who.parquet": "user_id,age\n"},
        r"who\.parquet: not a readable Parquet file",
    ),
    "a form": (dict(series=("country",)), {}, r"data\.series: 'country' is not NAME=FILE"),
    "one name": (
        dict(series=("s=a.csv", "s=b.csv")),
        {},
        r"'s=b\.csv' is not NAME=FILE with a name of its own",
    ),
    "one attribute": (
        dict(user_file="who.csv", user_features=("age", "age")),
        {"who.csv": "user_id,age\na,1\n"},
        "one is there twice",
    ),
}


@pytest.mark.parametrize("lacking", MISTAKES)
def test_what_is_lacking_is_named_with_the_remedy(tmp_path, lacking):
    fields, files, message = MISTAKES[lacking]
    with pytest.raises(ConfigError, match=message) as error:
        own(tmp_path, files, **fields)
    assert "\n" not in str(error.value)
    if lacking not in ("content", "Parquet"):
        return
    put(tmp_path, {"who.csv": "user_id,age\na,1,2\n"})
    with pytest.raises(ConfigError, match="not a readable CSV file"):
        own(tmp_path, {}, user_file="who.csv", user_features=("age",))


BAD = {
    "a,soon,x": "time is not a number",
    "a,,x": "time is not a number",
    "a,-1,x": "time is negative",
    "a,1452647382000,x": "time is after the year 2100",
    ",1,x": "no user id",
    "a,1,": "no mood",
}


@pytest.mark.parametrize("row", BAD)
def test_a_bad_row_of_a_series_stops_with_its_line_or_is_counted(tmp_path, row):
    files = {"mood.csv": f"user_id,timestamp,mood\na,1,good\n{row}\na,3,good\n"}
    with pytest.raises(
        BadRow, match=rf"mood\.csv:3: {BAD[row]}.*; correct the row or set data\.on_bad_row=skip"
    ):
        own(tmp_path, files, series=("mood=mood.csv",))
    found = own(tmp_path, files, series=("mood=mood.csv",), on_bad_row="skip")
    assert found.series[0].rows["time"].to_list() == [1, 3]
    assert [(reason[: len(BAD[row])], count) for reason, count in found.skipped.items()] == [
        (BAD[row], 1)
    ]


def test_a_row_without_an_id_stops_or_is_counted(tmp_path):
    files = {"who.csv": "age,user_id\n1,a\n2,\n"}
    with pytest.raises(BadRow, match=r"who\.csv:3: no user id"):
        own(tmp_path, files, user_file="who.csv", user_features=("age",))
    found = own(tmp_path, files, user_file="who.csv", user_features=("age",), on_bad_row="skip")
    assert found.skipped == {"no user id in who.csv": 1}


def test_settings_are_checked_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "fetch", None)
    config = DataConfig(source="amazon-2014", path=str(tmp_path), item_features=("brand",))
    with pytest.raises(
        ConfigError, match=r"data\.source=amazon-2014 has no file of them; set data\.item_file"
    ):
        prepare(config)
    with pytest.raises(ConfigError, match="'liked' is no action"):
        prepare(DataConfig(source="ml-1m", path=str(tmp_path), actions=("liked",)))


def test_a_generated_log_has_no_attributes():
    with pytest.raises(
        ConfigError, match=r"data\.user_features=\('age',\): the generated log has none"
    ):
        prepare(
            DataConfig(
                source="synthetic", user_features=("age",), synthetic=SyntheticConfig(20, 200, 20.0)
            )
        )


def test_a_changed_file_of_features_is_another_dataset_but_an_unused_setting_is_not(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "raw", {"log.csv": LOG, "who.csv": "user_id,age\na,1\n"})
    path = str(tmp_path / "raw" / "log.csv")
    plain = prepare(DataConfig(source="csv", path=path)).folder
    unused = dict(user_file="who.csv", max_series=3, stochastic_length_alpha=1.7)
    assert prepare(DataConfig(source="csv", path=path, **unused)).folder == plain
    with_age = DataConfig(source="csv", path=path, user_file="who.csv", user_features=("age",))
    folders = {plain, prepare(with_age).folder}
    put(tmp_path / "raw", {"who.csv": "user_id,age\na,2\n"})
    folders.add(prepare(with_age).folder)
    folders.add(prepare(DataConfig(source="csv", path=path, actions=("seen=1",))).folder)
    assert len(folders) == 4
    named = dict(source="csv", path=path, prepared=str(tmp_path / "named"))
    prepare(DataConfig(**named, actions=("seen=1",)))
    assert prepare(DataConfig(**named, actions=("seen=1",))).catalogue.actions == ("seen",)
    with pytest.raises(
        ConfigError, match=r"prepared otherwise: actions=\['again=1'\] \(was \['seen=1'\]\); delete"
    ):
        prepare(DataConfig(**named, actions=("again=1",)))


def test_files_may_be_unreadable_as_text(tmp_path):
    put(tmp_path, {"log.csv": LOG})
    with io.BytesIO("user_id,age\na,ü\n".encode("latin-1")) as text:
        (tmp_path / "who.csv").write_bytes(text.read())
    with pytest.raises(ConfigError, match=r"who\.csv: not a readable CSV file"):
        own(tmp_path, {}, user_file="who.csv", user_features=("age",))
