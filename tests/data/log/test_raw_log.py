"""Every raw format in, exact events out; every kind of bad row named by line, or counted."""

import csv
import gzip
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.log import bad_rows, formats, parse, raw_log
from gr_jax.data.log.layout import BadRow
from tests.data.read_log import read_log

KUAIRAND_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)


def read(source: str, path: Path, **fields) -> raw_log.Log:
    config = DataConfig(source=source, path=str(path), **fields)
    return read_log(config)


def events(log: raw_log.Log, *names: str) -> list[tuple]:
    return log.events.select(names or ("user", "item", "timestamp")).rows()


def put(file: Path, text: str, encoding: str = "utf-8") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode(encoding)
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def test_movielens_100k(tmp_path):
    put(tmp_path / "u.data", "196\t242\t3\t881250949\n186\t302\t3\t891717742\n")
    put(
        tmp_path / "u.item",
        "242|Kolya (1996)|24-Jan-1997||url|0\n302|Les Misérables|x||y|0\n",
        "latin-1",
    )
    log = read("ml-100k", tmp_path)
    assert events(log) == [(196, 242, 881250949), (186, 302, 891717742)]
    assert log.events["rating"].to_list() == [3.0, 3.0]
    assert log.titles is not None
    assert log.titles.rows() == [("242", "Kolya (1996)"), ("302", "Les Misérables")]


def test_movielens_1m(tmp_path):
    put(tmp_path / "ratings.dat", "1::1193::5::978300760\n1::661::3::978302109\n")
    put(
        tmp_path / "movies.dat",
        "661::Léon: The Pro (1994)::Drama\n1193::Cuckoo::Drama\n",
        "latin-1",
    )
    log = read("ml-1m", tmp_path)
    assert events(log) == [(1, 1193, 978300760), (1, 661, 978302109)]
    assert log.titles is not None and log.titles.rows()[0] == ("661", "Léon: The Pro (1994)")
    assert read("ml-1m", tmp_path / "ratings.dat").titles is not None, (
        "the titles lie beside the named file"
    )


def test_movielens_20m(tmp_path):
    put(
        tmp_path / "ratings.csv",
        "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,0.5,1112484676\n",
    )
    put(tmp_path / "movies.csv", 'movieId,title,genres\n2,"American President, The (1995)",Drama\n')
    log = read("ml-20m", tmp_path)
    assert events(log, "user", "item", "timestamp", "rating") == [
        (1, 2, 1112486027, 3.5),
        (1, 29, 1112484676, 0.5),
    ]
    assert log.titles is not None and log.titles.rows() == [("2", "American President, The (1995)")]


@pytest.mark.parametrize("name", ["ratings_Books.csv", "ratings_Books.csv.gz"])
def test_amazon_2014_has_no_header(tmp_path, name):
    put(
        tmp_path / name,
        "AH2L9G3DQHHAJ,0000000116,4.0,1019865600\nA2IIIDRK3PRRZY,0000000116,1.0,1395619200\n",
    )
    log = read("amazon-2014", tmp_path)
    assert events(log)[0] == ("AH2L9G3DQHHAJ", "0000000116", 1019865600)
    assert log.events["rating"].to_list() == [4.0, 1.0]


def test_amazon_2014_k_core_with_header_and_empty_ratings(tmp_path):
    put(
        tmp_path / "ratings.csv.gz",
        "user_id,item_id,rating,timestamp\n1,7873,,1318896000\n1,6846,,1318896000\n",
    )
    log = read("amazon-2014", tmp_path)
    assert events(log) == [("1", "7873", 1318896000), ("1", "6846", 1318896000)]
    assert "rating" not in log.events.columns


def test_two_amazon_categories_in_a_folder_are_not_mixed(tmp_path):
    put(tmp_path / "ratings_Books.csv", "A,B,4.0,1019865600\n")
    put(tmp_path / "ratings_Beauty.csv", "A,C,4.0,1019865600\n")
    with pytest.raises(
        ConfigError, match=r"ratings_Beauty\.csv, ratings_Books\.csv.*set data\.path"
    ):
        read("amazon-2014", tmp_path)
    assert events(read("amazon-2014", tmp_path / "ratings_Beauty.csv")) == [("A", "C", 1019865600)]


def test_files_of_attributes_beside_the_log_are_not_taken_for_logs(tmp_path):
    put(tmp_path / "clicks.csv", "user_id,item_id,timestamp\na,x,1019865600\n")
    for name in ("users.csv", "items.csv", "country.csv"):
        put(tmp_path / name, "what,ever\n1,2\n")
    own = {"user_file": "users.csv", "item_file": "items.csv", "series": ("country=country.csv",)}
    found = formats.find(DataConfig(source="csv", path=str(tmp_path), **own))
    assert [file.name for file in found.logs] == ["clicks.csv"]
    assert len(formats.find(DataConfig(source="csv", path=str(tmp_path))).logs) == 4


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "clicks.csv", "user_id,item_id,timestamp\na,x,1019865600\n")
    found = formats.find(DataConfig(source="csv", path="~/clicks.csv"))
    assert found.logs == (tmp_path / "clicks.csv",)


@pytest.mark.parametrize("name", ["All_Beauty.csv", "All_Beauty.csv.gz"])
def test_amazon_2023_is_in_milliseconds(tmp_path, name):
    put(
        tmp_path / name, "user_id,parent_asin,rating,timestamp\nAGKA,B006GBITXC,3.0,1452647382000\n"
    )
    log = read("amazon-2023", tmp_path)
    assert (log.unit, events(log)) == ("ms", [("AGKA", "B006GBITXC", 1452647382000)])


@pytest.mark.parametrize("name", ["All_Beauty.jsonl", "All_Beauty.jsonl.gz"])
def test_amazon_2023_reviews_as_json_lines(tmp_path, name):
    review = {
        "rating": 5.0,
        "title": "ok",
        "images": [],
        "asin": "B1",
        "parent_asin": "B2",
        "user_id": "AG",
    }
    lines = [json.dumps(review | {"timestamp": 1452647382000 + i}) for i in range(3)]
    put(tmp_path / name, "\n".join(lines) + "\n")
    assert events(read("amazon-2023", tmp_path)) == [
        ("AG", "B2", 1452647382000 + i) for i in range(3)
    ]
    put(tmp_path / name, "\n".join([lines[0], "{oops", lines[2]]) + "\n")
    with pytest.raises(BadRow, match=r":2: not a JSON object in '\{oops'"):
        read("amazon-2023", tmp_path)
    log = read("amazon-2023", tmp_path, on_bad_row="skip")
    assert (log.events.height, log.skipped) == (2, {"wrong number of fields": 1})


def kuairand_row(user: int, video: int, time: int, actions: str, enter: int = 0) -> str:
    return f"{user},{video},20220411,1900,{time},{actions},1385,209900,0,0,{enter},0,1\n"


def test_kuairand_logs_are_joined_in_order_of_name_with_actions_as_bits(tmp_path):
    data = tmp_path / "KuaiRand-1K" / "data"
    put(
        data / "log_standard_4_22_to_5_08_1k.csv",
        KUAIRAND_HEADER + kuairand_row(7, 3, 1650600000000, "0,0,0,0,0,0,1", 1),
    )
    put(
        data / "log_standard_4_08_to_4_21_1k.csv",
        KUAIRAND_HEADER + kuairand_row(7, 2, 1649675512388, "1,1,0,0,0,0,0"),
    )
    put(
        data / "log_random_4_22_to_5_08_1k.csv",
        KUAIRAND_HEADER + kuairand_row(7, 9, 1650600000000, "0,0,0,0,0,0,0"),
    )
    log = read("kuairand", tmp_path)
    assert events(log, "user", "item", "action") == [(7, 2, 0b11), (7, 3, 0b11000000)]
    assert log.actions[:2] == ("is_click", "is_like") and log.actions[6:] == (
        "long_view",
        "is_profile_enter",
    )
    assert log.unit == "ms"


def test_own_csv_with_own_column_names_in_any_order(tmp_path):
    put(tmp_path / "clicks.csv", 'when,shop,who,what\n1000,1,"Smith, J.",x\n2000,1,b,"y ""z"""\n')
    names = dict(user_column="who", item_column="what", time_column="when")
    assert events(read("csv", tmp_path / "clicks.csv", **names)) == [
        ("Smith, J.", "x", 1000),
        ("b", 'y "z"', 2000),
    ]


@settings(deadline=None)  # the first example also warms polars up
@given(
    st.lists(
        st.lists(st.text('ab,"\n', min_size=1, max_size=4), min_size=2, max_size=2), max_size=12
    ),
    st.booleans(),
)
def test_quoted_text_is_read_as_the_csv_module_reads_it(tmp_path_factory, rows, skip):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [["user_id", "item_id", "timestamp"], *([*row, 7] for row in rows)]
    )
    file = put(tmp_path_factory.mktemp("csv") / "a.csv", text.getvalue())
    good = [(user, item, 7) for user, item in rows if "\n" not in user + item]
    if skip:
        assert events(read("csv", file, on_bad_row="skip")) == good
    elif len(good) == len(rows):
        assert events(read("csv", file)) == good
    else:
        with pytest.raises(BadRow, match="id is not one line|empty"):
            read("csv", file)


def test_a_quoted_file_in_order_needs_no_slow_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(bad_rows, "sift", None)
    monkeypatch.setattr(parse, "_CHUNK_BYTES", 32)
    put(tmp_path / "a.csv", '"user_id","item_id","timestamp"\n' + '"a, b","say ""x""","12"\n' * 9)
    assert events(read("csv", tmp_path)) == [("a, b", 'say "x"', 12)] * 9


def test_windows_line_ends_byte_order_mark_blank_lines_and_no_final_line_end(tmp_path):
    put(tmp_path / "a.csv", "\ufeffuser_id,item_id,timestamp\r\na,x,1\r\n\r\nb,y,2\r\n\r\nc,z,3")
    assert events(read("csv", tmp_path)) == [("a", "x", 1), ("b", "y", 2), ("c", "z", 3)]
    put(tmp_path / "a.csv", "\ufeffuser_id,item_id,timestamp\r\na,x,1\r\nb,y,2")
    assert events(read("csv", tmp_path)) == [("a", "x", 1), ("b", "y", 2)]


def test_fractions_of_a_second_are_cut_off(tmp_path):
    put(tmp_path / "a.csv", "user_id,item_id,timestamp\na,x,1318896000.75\nb,y,1.3e9\n")
    assert events(read("csv", tmp_path)) == [("a", "x", 1318896000), ("b", "y", 1300000000)]


def test_own_parquet(tmp_path):
    frame = pl.DataFrame({"u": [3, 1], "i": ["x", "y"], "t": [5, 6], "stars": [1.0, None]})
    frame.write_parquet(tmp_path / "log.parquet")
    names = dict(user_column="u", item_column="i", time_column="t", rating_column="stars")
    log = read("parquet", tmp_path, **names)
    assert events(log) == [(3, "x", 5), (1, "y", 6)]
    frame = frame.with_columns(pl.from_epoch("t", time_unit="s"))
    frame.write_parquet(tmp_path / "log.parquet")
    assert events(read("parquet", tmp_path, **names)) == [(3, "x", 5), (1, "y", 6)]
    frame.cast({"i": pl.Categorical}).write_parquet(tmp_path / "log.parquet")
    assert events(read("parquet", tmp_path, **names)) == [(3, "x", 5), (1, "y", 6)]
    frame.with_columns(i=pl.Series(["x", None])).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(BadRow, match=r"log\.parquet: row 2: empty item id"):
        read("parquet", tmp_path, **names)
    assert read("parquet", tmp_path, **names, on_bad_row="skip").skipped == {"empty item id": 1}
    with pytest.raises(
        ConfigError, match="no timestamp column 'time', only 'u', 'i', 't', 'stars'"
    ):
        read("parquet", tmp_path, **{**names, "time_column": "time"})
    (tmp_path / "log.parquet").write_text("u,i\n")
    with pytest.raises(ConfigError, match="not a readable Parquet file"):
        read("parquet", tmp_path, **names)


def test_parts_of_an_own_log_are_joined(tmp_path):
    put(tmp_path / "day2.csv", "user_id,item_id,timestamp\na,y,2\n")
    put(tmp_path / "day1.csv.gz", "timestamp,user_id,item_id\n1,a,x\n")
    assert events(read("csv", tmp_path)) == [("a", "x", 1), ("a", "y", 2)]


def test_the_archive_as_downloaded_is_read_without_unpacking_it_by_hand(tmp_path):
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", "1::1193::5::978300760\n")
        archive.writestr("ml-1m/movies.dat", "1193::Cuckoo::Drama\n")
    log = read("ml-1m", tmp_path)
    assert events(log) == [(1, 1193, 978300760)] and log.titles is not None
    content = (KUAIRAND_HEADER + kuairand_row(7, 2, 1649675512388, "1,1,0,0,0,0,0")).encode()
    with tarfile.open(tmp_path / "KuaiRand-1K.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("KuaiRand-1K/data/log_standard_4_08_to_4_21_1k.csv")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    assert events(read("kuairand", tmp_path / "KuaiRand-1K.tar.gz")) == [(7, 2, 1649675512388)]
    (tmp_path / "ml-1m.zip").write_bytes((tmp_path / "ml-1m.zip").read_bytes()[:60])
    with pytest.raises(ConfigError, match=r"ml-1m\.zip: damaged archive"):
        read("ml-1m", tmp_path)


# Line 3 of an own CSV log, and what is wrong with it.
BAD = {
    "b,y": "2 fields instead of 4",
    "b,y,4,2,9": "5 fields instead of 4",
    "b,y,4,": "time is not a number",
    "b,y,4,noon": "time is not a number",
    "b,y,4,nan": "time is not a number",
    "b,y,4,-2": "time is negative",
    "b,y,4,9999999999999": "time is after the year 2100",
    ",y,4,2": "empty user id",
    "  ,y,4,2": "empty user id",
    "b,,4,2": "empty item id",
    '"",y,4,2': "empty user id",
    "b,y,good,2": "rating is not a number",
    "b,y,inf,2": "rating is not a number",
    '"b\nc",y,4,2': "user id is not one line of UTF-8 text",
    "b\udcff,y,4,2": "user id is not one line of UTF-8 text",
}


@pytest.mark.parametrize("end", [".csv", ".csv.gz"])
@pytest.mark.parametrize("row", BAD)
def test_a_bad_row_stops_with_file_line_content_reason_and_remedy_or_is_counted(tmp_path, row, end):
    text = f"user_id,item_id,stars,timestamp\na,x,5,1\n{row}\nc,z,,3\n"
    file = tmp_path / f"log{end}"
    content = text.encode("utf-8", "surrogateescape")
    file.write_bytes(gzip.compress(content) if end == ".csv.gz" else content)
    with pytest.raises(BadRow) as error:
        read("csv", file, rating_column="stars")
    message = str(error.value)
    assert message.startswith(f"{file}:3: {BAD[row]} in ") and "\n" not in message
    assert repr(row.split("\n")[0].replace("\udcff", "\ufffd")) in message
    assert message.endswith("set data.on_bad_row=skip")
    log = read("csv", file, rating_column="stars", on_bad_row="skip")
    assert events(log) == [("a", "x", 1), ("c", "z", 3)]
    assert log.skipped == {re.sub(r"\d fields.*", "wrong number of fields", BAD[row]): 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1::661::3", "3 fields instead of 4"),
        ("1:661:3:978302109", "1 fields instead of 4"),
        ("1::661::3::978302109::", "5 fields instead of 4"),
        ("1::two::3::978302109", "item id is not an integer"),
        ("1::661::3::x", "time is not a number"),
    ],
)
def test_a_bad_row_of_the_double_colon_format(tmp_path, row, reason):
    file = put(tmp_path / "ratings.dat", f"1::1193::5::978300760\n{row}\n1::5::5::978300760\n")
    with pytest.raises(BadRow, match=re.escape(f"{file}:2: {reason} in {row!r}")):
        read("ml-1m", tmp_path)
    assert read("ml-1m", tmp_path, on_bad_row="skip").events.height == 2


def test_a_bad_row_of_the_tab_format_and_of_an_action(tmp_path):
    put(tmp_path / "u.data", '196\t242\t3\t881250949\n"186\t302\t3\t891717742\n')
    with pytest.raises(BadRow, match="u.data:2: user id is not an integer"):
        read("ml-100k", tmp_path)
    row = kuairand_row(7, 2, 1649675512388, "1,2,0,0,0,0,0")
    put(tmp_path / "log_standard_x.csv", KUAIRAND_HEADER + row)
    with pytest.raises(BadRow, match="log_standard_x.csv:2: is_like is not 0 or 1"):
        read("kuairand", tmp_path)


@pytest.mark.parametrize("extra", ["", ",shop,9"])
def test_a_wrong_number_of_fields_is_seen_behind_the_columns_in_use(tmp_path, extra):
    put(tmp_path / "a.csv", f"user_id,item_id,timestamp,shop\na,x,1,q\nb,y,2{extra}\n")
    with pytest.raises(BadRow, match=r"a\.csv:3: \d fields instead of 4"):
        read("csv", tmp_path)
    assert events(read("csv", tmp_path, on_bad_row="skip")) == [("a", "x", 1)]


def test_bad_rows_of_a_long_file_are_numbered_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(bad_rows, "_CHUNK_BYTES", 64)
    monkeypatch.setattr(bad_rows, "_CHUNK_ROWS", 3)
    for quote in ("", '"'):
        rows = [f"{quote}u{i}{quote},x{i},{i}" for i in range(50)]
        rows[37] = "u37,x37,never"
        put(tmp_path / "a.csv", "\n".join(["user_id,item_id,timestamp", *rows]))
        with pytest.raises(BadRow, match=r"a\.csv:39: time is not a number in 'u37,x37,never'"):
            read("csv", tmp_path)
        log = read("csv", tmp_path, on_bad_row="skip")
        assert [t for _, _, t in events(log)] == [*range(37), *range(38, 50)]


def test_reasons_are_counted_over_all_files(tmp_path):
    put(tmp_path / "a.csv", "user_id,item_id,timestamp\na,x,1\n,x,1\nb,x,-1\n")
    put(tmp_path / "b.csv", "user_id,item_id,timestamp\n,x,1\nc,x\nc,y,9\n")
    log = read("csv", tmp_path, on_bad_row="skip")
    assert log.skipped == {"empty user id": 2, "time is negative": 1, "wrong number of fields": 1}
    assert events(log) == [("a", "x", 1), ("c", "y", 9)]


def test_a_quote_that_never_closes_is_found_where_it_opens(tmp_path):
    put(tmp_path / "a.csv", 'user_id,item_id,timestamp\na,x,1\n"b,x,2\n' + "c,x,3\n" * 30_000)
    with pytest.raises(BadRow, match=r"a\.csv:3: 1 fields instead of 3 in '\"b,x,2'"):
        read("csv", tmp_path)


def test_a_field_of_several_lines_counts_as_the_lines_it_has(tmp_path):
    put(
        tmp_path / "a.csv", 'user_id,item_id,timestamp,review\na,x,1,"good\n\nvery"\nb,x,soon,bad\n'
    )
    with pytest.raises(BadRow, match=r"a\.csv:5: time is not a number in 'b,x,soon,bad'"):
        read("csv", tmp_path)
    assert events(read("csv", tmp_path, on_bad_row="skip")) == [("a", "x", 1)]


def test_milliseconds_taken_for_seconds_and_the_reverse_are_told(tmp_path):
    put(tmp_path / "a.csv", "user_id,item_id,timestamp\na,x,1452647382000\n")
    with pytest.raises(BadRow, match=r"a\.csv:2: .*looks like milliseconds.*data\.time_unit=ms"):
        read("csv", tmp_path)
    assert events(read("csv", tmp_path, time_unit="ms")) == [("a", "x", 1452647382000)]
    put(tmp_path / "a.csv", "user_id,item_id,timestamp\na,x,1452647382\n")
    with pytest.raises(ConfigError, match=r"looks like seconds.*data\.time_unit=s"):
        read("csv", tmp_path, time_unit="ms")


def test_a_truncated_gzip_stops_at_its_last_line_or_keeps_the_whole_lines(tmp_path):
    rows = [f"user{i * 7919 % 10007},item{i},{i}" for i in range(5000)]
    content = gzip.compress(("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n").encode())
    file = tmp_path / "log.csv.gz"
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        BadRow, match=r"log\.csv\.gz:\d+: truncated gzip file, it ends in '.*on_bad_row=skip"
    ):
        read("csv", file)
    log = read("csv", file, on_bad_row="skip")
    kept = log.events.height
    assert log.skipped == {"truncated gzip file": 1} and 1000 < kept < 4000
    assert [f"{u},{i},{t}" for u, i, t in events(log)] == rows[:kept]
    broken = bytearray(content)
    broken[-6] ^= 255  # of the checksum
    file.write_bytes(broken)
    with pytest.raises(ConfigError, match="damaged gzip file"):
        read("csv", file, on_bad_row="skip")


def test_a_missing_column_names_those_there_and_the_nearest(tmp_path):
    put(tmp_path / "a.csv", "userid,item_id,timestamp\na,x,1\n")
    with pytest.raises(
        ConfigError, match=r"a\.csv: no user column 'user_id', only 'userid', .*mean 'userid'\?"
    ):
        read("csv", tmp_path)


def test_an_empty_file_is_told(tmp_path):
    put(tmp_path / "a.csv", "")
    with pytest.raises(ConfigError, match=r"a\.csv: empty file"):
        read("csv", tmp_path)
