"""Conditions on the columns of a log: what they say, what they set, and what is no condition."""

import gzip
import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.log import raw_log
from gr_jax.data.log.actions import MOST, Action, bits, parse
from gr_jax.data.log.layout import BadRow
from tests.data.read_log import read_log

FORMS = {
    "watched=1": Action("watched"),
    "click=is_click": Action("click", "is_click"),
    " long view ": None,
    "long-view = long_view": Action("long-view", "long_view"),
    "liked=rating>=4": Action("liked", "rating", ">=", 4.0),
    "short = play time < 2.5e3 ": Action("short", "play time", "<", 2500.0),
    "hated=rating==1": Action("hated", "rating", "==", 1.0),
    "cold=temperature<=-3": Action("cold", "temperature", "<=", -3.0),
    "far=distance>0": Action("far", "distance", ">", 0.0),
    "second=2nd": Action("second", "2nd"),
    "liked": None,
    "liked=": None,
    "=rating>=4": None,
    "liked=4": None,
    "liked=-1.5": None,
    "liked=rating=4": None,
    "liked=rating>=": None,
    "liked=>=4": None,
    "liked=rating>=good": None,
    "liked=rating>=nan": None,
    "liked=1<rating<4": None,
    "liked=rating!=4": None,
}


@pytest.mark.parametrize("text", FORMS)
def test_a_condition_is_one_of_three_forms(text):
    if FORMS[text] is not None:
        assert parse((text,)) == (FORMS[text],)
        return
    with pytest.raises(ConfigError) as error:
        parse(("watched=1", text))
    assert str(error.value).startswith(
        f"data.actions: {text!r} is no action: write "
    ) and "\n" not in str(error.value)


def test_names_are_unique_and_fit_one_token():
    with pytest.raises(ConfigError, match="'liked' is there twice"):
        parse(("liked=rating>=4", "liked=rating>=5"))
    with pytest.raises(ConfigError, match='"rating" names the value of the rating as a task'):
        parse(("rating=rating>=4",))
    with pytest.raises(ConfigError, match=f"{MOST + 1} actions, at most {MOST}"):
        parse(tuple(f"a{i}=1" for i in range(MOST + 1)))
    events = bits(pl.DataFrame({"user": [1]}), parse(tuple(f"a{i}=1" for i in range(MOST))), {})
    assert 1 + 2 * events["action"].to_numpy().astype("int64")[0] == 2**31 - 1, (
        "the token of all of them is an int32"
    )


@given(
    st.lists(
        st.tuples(st.sampled_from([None, 1.0, 2.5, 3.0, 4.0]), st.integers(0, 1)),
        min_size=1,
        max_size=8,
    )
)
def test_bits_are_the_conditions_row_by_row_and_never_true_of_an_absent_value(rows):
    texts = ("all=1", "flag=f", "ge=v>=2.5", "gt=v>2.5", "le=v<=2.5", "lt=v<2.5", "eq=v==2.5")
    actions = parse(texts)
    frame = pl.DataFrame(
        {"v": [v for v, _ in rows] + [2.5], "f": [f for _, f in rows] + [1]},
        schema={"v": pl.Float64, "f": pl.Int8},
    )
    columns = {action: action.column for action in actions if action.column}
    rows = [*rows, (2.5, 1)]
    compare = (
        lambda v: v >= 2.5,
        lambda v: v > 2.5,
        lambda v: v <= 2.5,
        lambda v: v < 2.5,
        lambda v: v == 2.5,
    )
    expected = [
        1 + 2 * f + sum(4 << i for i, c in enumerate(compare) if v is not None and c(v))
        for v, f in rows
    ]
    assert bits(frame, actions, columns)["action"].to_list() == expected


def read(source, path, *actions, **fields):
    config = DataConfig(source=source, path=str(path), actions=actions, **fields)
    return read_log(config)


def test_any_column_of_an_own_log_can_tell_an_action_and_only_the_bits_are_kept(tmp_path):
    (tmp_path / "log.csv").write_text(
        "user_id,item_id,timestamp,stars,seconds,bought\na,x,1,4.1,,0\na,y,2,,12.5,1\nb,x,3,4,30,1\n"
    )
    wanted = ("any=1", "liked=stars>=4.1", "long=seconds>12", "buy=bought", "notbuy=bought<1")
    log = read("csv", tmp_path, *wanted, rating_column="stars")
    assert log.actions == ("any", "liked", "long", "buy", "notbuy")
    assert log.events["action"].to_list() == [0b10011, 0b01101, 0b01101]
    assert log.events.columns == ["user", "item", "timestamp", "rating", "action"]
    (tmp_path / "log.csv").unlink()
    rows = {
        "user_id": ["a", "b"],
        "item_id": ["x", "y"],
        "timestamp": [1, 2],
        "bought": [True, False],
        "seconds": [5, 50],
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "log.parquet")
    assert read("parquet", tmp_path, "buy=bought", "long=seconds>12").events[
        "action"
    ].to_list() == [1, 2]


def test_actions_of_public_formats_replace_their_own(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n1::661::3::978302109\n")
    log = read("ml-1m", tmp_path / "ratings.dat", "watched=1", "loved=rating>=5")
    assert log.events["action"].to_list() == [0b11, 0b01] and log.events["rating"].to_list() == [
        5,
        3,
    ]
    review = {"rating": 2.0, "parent_asin": "B", "user_id": "A", "timestamp": 1452647382000}
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps(review) + "\n" + json.dumps(review | {"rating": 4.0}) + "\n")
    assert read("amazon-2023", tmp_path, "liked=rating>=4").events["action"].to_list() == [0, 1]
    (tmp_path / "log_standard_1.csv").write_text(
        "user_id,video_id,time_ms,is_click,play_time_ms\n1,5,1650600000000,1,900\n1,6,1650600000001,0,5000\n"
    )
    log = read("kuairand", tmp_path, "click=is_click", "played=play_time_ms>=1000")
    assert log.events["action"].to_list() == [0b01, 0b10]
    assert read("kuairand", tmp_path).actions == ("is_click",)


def test_a_column_that_cannot_tell_the_action_is_named_in_one_line(tmp_path):
    file = tmp_path / "log.csv"
    file.write_text("user_id,item_id,timestamp,shop,stars\na,x,1,north,\nb,x,2,south,\n")
    told = {
        "click=clicked": (ConfigError, "log.csv: no action column 'clicked', only 'user_id'"),
        "big=stores>=4": (ConfigError, "no action column 'stores', only .*did you mean 'stars'"),
        "big=shop>=4": (
            BadRow,
            "log.csv:2: shop is not a number in .*all rows are so: data.actions compares this",
        ),
        "in=shop": (BadRow, "log.csv:2: shop is not 0 or 1"),
        "big=stars>=4": (ConfigError, "'big' compares 'stars', which is empty in this log"),
    }
    for action, (kind, message) in told.items():
        with pytest.raises(kind, match=message) as error:
            read("csv", file, action)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="'big' compares 'stars', which is empty"):
        read("csv", file, "big=stars>=4", rating_column="stars")
    assert read("csv", file, "at=timestamp>=2", "who=1").events["action"].to_list() == [2, 3], (
        "a column in two roles"
    )
    file.write_text("user_id,item_id,timestamp\n02,x,1\n10,x,2\n")
    log = read("csv", file, "new=user_id>=5")
    assert log.events["user"].to_list() == ["02", "10"] and log.events["action"].to_list() == [0, 1]


def test_a_generated_log_tells_actions_by_its_columns():
    events = pl.DataFrame({"user": [1], "item": [2], "timestamp": [3], "like": [1], "name": ["x"]})
    log = raw_log.with_actions(events, parse(("watched=1", "liked=like")))
    assert log.events.columns == ["user", "item", "timestamp", "action"] and log.events[
        "action"
    ].to_list() == [3]
    with pytest.raises(
        ConfigError, match="'love' looks at 'loke', the log has only .*did you mean 'like'"
    ):
        raw_log.with_actions(events, parse(("love=loke",)))
    with pytest.raises(
        ConfigError, match="'love' compares 'name', which is not a column of numbers"
    ):
        raw_log.with_actions(events, parse(("love=name>=1",)))
