"""Files as people have them: read as what they are, or one line that says what to do."""

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pytest

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.log import unpack
from gr_jax.data.log.layout import BadRow
from tests.data.read_log import read_log

ROWS = [("a", "x", 10), ("b", "é", 20), ("a", "y z", 30)]


def text(between: str = ",", end: str = "\n", header: str = "user_id,item_id,timestamp") -> str:
    lines = [header.replace(",", between), *(between.join(map(str, row)) for row in ROWS)]
    return "".join(f"{line}{end}" for line in lines)


def put(folder: Path, name: str, content: bytes | str) -> Path:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


def read(path: Path, **fields):
    log = read_log(DataConfig(source="csv", path=str(path), **fields))
    return log.events.select("user", "item", "timestamp").rows()


def told(path: Path, message: str, **fields) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read(path, **fields)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("between", [",", "\t", ";", "|"])
@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.txt"])
def test_the_delimiter_is_the_one_by_which_the_header_line_has_the_columns(tmp_path, between, name):
    assert read(put(tmp_path, name, text(between))) == ROWS


def test_a_delimiter_may_be_named(tmp_path):
    assert read(put(tmp_path, "a.csv", text("^")), delimiter="^") == ROWS
    assert read(put(tmp_path, "b.csv", text("\t")), delimiter="tab") == ROWS
    assert read(put(tmp_path, "c.csv", text("\t")), delimiter="\\t") == ROWS
    told(put(tmp_path, "d.csv", text("^")), "no user column 'user_id', only 'user_id.item_id")
    semicolons = put(tmp_path, "e.csv", text(";").replace("user_id", "who"))
    told(semicolons, "no user column 'user_id', only 'who', 'item_id', 'timestamp'")
    for mark in ("ab", "x", '"', "\n", "7"):
        with pytest.raises(ConfigError, match="data.delimiter"):
            DataConfig(delimiter=mark)


ENCODED = {
    "UTF-8 with a mark": text().encode("utf-8-sig"),
    "UTF-16": text().encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + text().encode("utf-16-be"),
    "UTF-32": text().encode("utf-32"),
    "UTF-16 of Windows": text("\t", "\r\n").encode("utf-16"),
    "old Mac": text(end="\r").encode(),
    "old Mac in UTF-16": text(end="\r").encode("utf-16"),
    "gzip": gzip.compress(text().encode()),
    "gzip of UTF-16": gzip.compress(text().encode("utf-16")),
}


@pytest.mark.parametrize("name", ["log.csv", "log", "log.dat"])
@pytest.mark.parametrize("content", ENCODED.values(), ids=ENCODED)
def test_encodings_line_ends_and_compression_are_seen_in_the_file_not_in_its_name(
    tmp_path, content, name
):
    file = put(tmp_path, name, content)
    assert read(file) == ROWS
    assert file.read_bytes() == content and len(list(tmp_path.iterdir())) == 1


def test_a_bad_row_of_such_a_file_is_told_by_its_line_there(tmp_path):
    wrong = text(end="\r").replace("20", "noon").encode("utf-16")
    told(put(tmp_path, "log.csv", wrong), r"log\.csv:3: time is not a number in 'b,é,noon'")


def parquet() -> bytes:
    out = io.BytesIO()
    pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(out)
    return out.getvalue()


OTHERS = {
    "Parquet": (parquet(), "Parquet file: data.source=parquet reads it"),
    "bzip2": (bz2.compress(text().encode()), "compressed by bzip2: unpack it by hand"),
    "xz": (lzma.compress(text().encode()), "compressed by xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "compressed by zstd"),
    "zip": (b"PK\x03\x04" + bytes(20), "a zip archive, or a workbook"),
    "pickle": (pickle.dumps(ROWS), "a pickle, which is a program"),
    "no mark": (text().encode("utf-16-le"), "it has zero bytes; if it is in UTF-16"),
    "half a UTF-16": (text().encode("utf-16")[:-1], "damaged UTF-16 text"),
    "nothing": (b"", "empty file"),
    "JSON lines": (b'{"user_id": "a", "item_id": "x", "timestamp": 1}\n', "call it .jsonl"),
    "a JSON array": (b'[{"user_id": "a", "item_id": "x"}]', "one object a line and call it .jsonl"),
    "long": (b",".join(b"c%d" % i for i in range(100_003)), "'c19', ...$"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_format_is_named_with_what_to_do(tmp_path, kind):
    content, message = OTHERS[kind]
    told(put(tmp_path, "log.csv", content), rf"log\.csv: .*{message}")


def test_text_under_source_parquet_is_named_too(tmp_path):
    put(tmp_path, "log.parquet", text())
    with pytest.raises(ConfigError, match="not a readable Parquet file.*data.source=csv"):
        read_log(DataConfig(source="parquet", path=str(tmp_path)))
    (tmp_path / "log.parquet").write_bytes(parquet()[:-9])
    with pytest.raises(ConfigError, match="not a readable Parquet file") as error:
        read_log(DataConfig(source="parquet", path=str(tmp_path)))
    assert "data.source=csv" not in str(error.value)


def test_a_column_in_use_that_is_there_twice_is_refused(tmp_path):
    twice = put(tmp_path, "a.csv", "user_id,item_id,timestamp,item_id\na,x,1,y\n")
    told(twice, "the item column 'item_id' is there 2 times")
    assert read(put(tmp_path, "b.csv", "user_id,n,item_id,timestamp,n\na,1,x,5,2\n")) == [
        ("a", "x", 5)
    ]


def zipped(folder: Path, members: list[tuple[str, str]], name: str = "log.zip") -> Path:
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members:
            archive.writestr(member, content)
    return folder / name


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("log.csv", "log.csv"), ("mon/log.csv", "tue/log.csv")])
def test_two_members_of_one_name_are_refused(tmp_path, names):
    told(zipped(tmp_path, [(name, text()) for name in names]), "two members are called log.csv")
    with tarfile.open(tmp_path / "log.tar.gz", "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(text().encode())
            archive.addfile(member, io.BytesIO(text().encode()))
    told(tmp_path / "log.tar.gz", "two members are called log.csv")


def test_members_of_other_names_are_one_log(tmp_path):
    archive = zipped(tmp_path, [("a/1.csv", text()), ("b/2.csv", text()), ("read.me", "hello")])
    assert read(archive) == ROWS * 2


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_in_an_archive_is_not_followed(tmp_path, kind):
    with tarfile.open(tmp_path / "log.tar", "w") as archive:
        member = tarfile.TarInfo("log.csv")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    told(tmp_path / "log.tar", "log.csv in it is no plain file; unpack it by hand")


def test_an_encrypted_or_oddly_packed_archive_is_told(tmp_path):
    file = zipped(tmp_path, [("log.csv", text())])
    content = bytearray(file.read_bytes())
    local, central = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    for at in (local + 6, central + 8):
        content[at] |= 1  # the flag of encryption
    told(put(tmp_path, "secret.zip", bytes(content)), r"secret\.zip: is encrypted; unpack it")
    content = bytearray(file.read_bytes())
    for at in (local + 8, central + 10):
        content[at] = 97  # WavPack
    told(put(tmp_path, "odd.zip", bytes(content)), r"odd\.zip: has an unknown compression")
    content = bytearray(file.read_bytes())
    content[local + 40] ^= 255
    told(put(tmp_path, "broken.zip", bytes(content)), r"broken\.zip: damaged archive")


def test_what_unpacks_to_more_than_any_log_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "_LEAST_BOUND", 1 << 20)
    monkeypatch.setattr(unpack, "_BLOCK", 1 << 16)
    bomb = "user_id,item_id,timestamp\n" + "a,x,1\n" * (1 << 19)
    told(zipped(tmp_path, [("log.csv", bomb)]), r"log\.zip: unpacks to more than 1,048,576 bytes")
    packed = gzip.compress(bomb.encode())
    told(put(tmp_path, "log.csv.gz", packed), "unpacks to more than 1,048,576 bytes.*by hand")
    parts = [(f"{i}.csv", bomb[: 1 << 19]) for i in range(3)]
    told(zipped(tmp_path, parts, "parts.zip"), "unpacks to more than")


def test_a_cut_gzip_without_its_name_is_a_bad_row(tmp_path):
    many = "user_id,item_id,timestamp\n" + "".join(f"u{i},i{i * 7919},{i}\n" for i in range(9999))
    file = put(tmp_path, "log.csv", gzip.compress(many.encode())[:9999])
    with pytest.raises(BadRow, match="truncated gzip file"):
        read(file)
    assert read(file, on_bad_row="skip")[0] == ("u0", "i0", 0)
