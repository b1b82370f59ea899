"""The format and the time unit of logs that nobody has described."""

import gzip
import zipfile

import polars as pl
import pytest

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.log.detect import described


def log_at(path) -> DataConfig:
    return DataConfig(path=str(path), user_column="u", item_column="i", time_column="t")


def csv_of(times, mark=",") -> str:
    return "\n".join([mark.join("uit"), *(mark.join(["a", "b", str(time)]) for time in times)])


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        ([1_700_000_000, 1_700_000_005.5], "s"),
        ([1_700_000_000_123], "ms"),
        ([1_700_000_000_123_456], "us"),
        ([1_700_000_000_123_456_789], "ns"),
        (["2024-05-01T12:30:00Z"], "s"),
        ([3, 4], "s"),
    ],
)
def test_the_unit_of_the_times_is_found(tmp_path, times, unit):
    file = tmp_path / "log.csv"
    file.write_text(csv_of(times))
    found = described(log_at(file))
    assert (found.source, found.time_unit) == ("csv", unit)


@pytest.mark.parametrize("name", ["log.csv.gz", "log.zip", "log.tsv", "log.jsonl", "folder"])
def test_it_is_found_in_any_package(tmp_path, name):
    file, text = tmp_path / name, csv_of([1_700_000_000_123], "\t" if name == "log.tsv" else ",")
    if name == "log.zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("log.csv", text)
    elif name == "log.jsonl":
        file.write_text('{"u": 1, "i": 2, "t": 1700000000123}\n')
    elif name == "folder":
        file.mkdir()
        (file / "log.csv").write_text(text)
    else:
        file.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert described(log_at(file)).time_unit == "ms"


def test_parquet_is_known_by_its_content(tmp_path):
    file = tmp_path / "log"
    pl.DataFrame({"u": ["a"], "i": ["b"], "t": [1_700_000_000_123]}).write_parquet(file)
    found = described(log_at(file))
    assert (found.source, found.time_unit) == ("parquet", "ms")


def test_a_mistake_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no log there"):
        described(log_at(tmp_path / "absent.csv"))
    (tmp_path / "log.csv").write_text("user,i,t\na,b,3")
    with pytest.raises(ConfigError, match="no user column 'u'"):
        described(log_at(tmp_path / "log.csv"))
