"""Own files of attributes: read in every form that a log may have, or refused in one line."""

import datetime
import gzip
from pathlib import Path

import polars as pl
import pytest

from gr_jax.config import ConfigError
from gr_jax.data.log import tables

WHAT = {"item_id": "item column", "tag": "data.item_features column"}
ROWS = [("x", "1"), ("y", "2")]
TEXT = "item_id,other,tag\nx,5,1\ny,5,2\n"
PLAIN = {
    "commas": TEXT,
    "tabs": TEXT.replace(",", "\t"),
    "semicolons": TEXT.replace(",", ";"),
    "UTF-16": TEXT.encode("utf-16"),
    "gzip": gzip.compress(TEXT.encode()),
    "carriage returns": TEXT.replace("\n", "\r"),
    "a mark": TEXT.encode("utf-8-sig"),
}


def put(folder: Path, content: bytes | str, name: str = "items.csv") -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def parquet(folder: Path, name: str = "items.parquet", **columns) -> Path:
    pl.DataFrame({"item_id": ["x", "y"]} | columns, strict=False).write_parquet(folder / name)
    return folder / name


@pytest.mark.parametrize("content", PLAIN.values(), ids=PLAIN)
def test_every_form_of_text_is_read(tmp_path, content):
    file = put(tmp_path, content)
    assert tables.read(file, WHAT).rows() == ROWS
    assert tables.columns(file) == ["item_id", "other", "tag"]


NAMES = {
    "text": ["1", "2"],
    "integers": [1, 2],
    "categories": pl.Series(["1", "2"], dtype=pl.Categorical),
}


@pytest.mark.parametrize("name", ["items.parquet", "items.csv"])
@pytest.mark.parametrize("column", NAMES.values(), ids=NAMES)
def test_parquet_is_known_by_its_content_and_its_names_are_text(tmp_path, column, name):
    assert tables.read(parquet(tmp_path, name, tag=column), WHAT).rows() == ROWS


def test_lists_are_read_where_a_cell_may_have_several_values(tmp_path):
    file = parquet(tmp_path, tag=[[1], [2, 3]])
    assert tables.read(file, WHAT, lists=("tag",))["tag"].to_list() == [["1"], ["2", "3"]]
    with pytest.raises(ConfigError, match=r"column 'tag' is List\(Int64\), not text"):
        tables.read(file, WHAT)


REFUSED = {
    "Struct": [{"a": 1}, {"a": 2}],
    "Binary": [b"1", b"\xff"],
    "Duration": [datetime.timedelta(1)] * 2,
    "List": [[{"a": 1}], []],
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_type_whose_text_is_no_name_is_refused(tmp_path, kind):
    file = parquet(tmp_path, tag=REFUSED[kind])
    with pytest.raises(ConfigError, match=f"column 'tag' is {kind}.*, not text, numbers"):
        tables.read(file, WHAT, lists=("tag",))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (TEXT.replace("other", "tag"), "the data.item_features column 'tag' is there twice"),
        (TEXT.replace("tag", "tags"), "no data.item_features column 'tag', only .*did you mean 't"),
        ("item_id,tag\nx,1,7\n", "not a readable CSV file"),
        ("", "empty file"),
        (b"PK\x03\x04" + bytes(9), "not text but a zip archive"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, content, told):
    with pytest.raises(ConfigError, match=rf"items\.csv: .*{told}") as error:
        tables.read(put(tmp_path, content), WHAT)
    assert "\n" not in str(error.value)
