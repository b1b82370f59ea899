"""Damage of a prepared dataset that is never taken for data, and the hash of its contents."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from gr_jax import folders
from gr_jax.config import ConfigError
from gr_jax.data import dataset_files
from gr_jax.data.dataset import Dataset, copy_to, open_dataset, write

COLUMNS = {
    "offsets": [0, 2, 5],
    "item": [1, 2, 3, 1, 1],
    "timestamp": [5, 9, 1, 4, 4],
    "rating": [1.0, np.nan, 2.0, 3.0, 5.0],
    "action": [0, 1, 2, 3, 0],
    "user_features": [[1], [2]],
    "item_features": [[0, 0], [1, 3], [3, 0], [0, 0]],
    "series_offsets": [0, 0, 2],
    "series_value": [1, 2],
    "series_time": [3, 4],
}
META = {
    "actions": ["click", "like"],
    "user_features": ["sex"],
    "item_features": ["tag"],
    "series": ["sex"],
    "num_feature_values": 3,
    "series_entries": 2,
}
FEATURES = pl.DataFrame(
    {"value_id": [1, 2, 3], "feature": ["sex", "sex", "tag"], "value": ["F", "M", "red"]},
    schema_overrides={"value_id": pl.Int32},
)


def made(folder: Path, *, users=("a", "b"), meta=META, features=FEATURES, **changed) -> Dataset:
    columns = {name: np.array(values) for name, values in (COLUMNS | changed).items()}
    return write(
        folder,
        columns=columns,
        raw_users=users,
        raw_items=["x", "y", "z"],
        feature_table=features,
        meta=meta,
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """The folder of a dataset that no test changes."""
    return made(tmp_path_factory.mktemp("sound") / "dataset").folder


def refused(folder: Path, name: str) -> None:
    """Opening the folder is refused in one line that names the file and ends in a remedy."""
    with pytest.raises(ConfigError, match="delete the folder and prepare it again") as error:
        open_dataset(folder)
    assert str(error.value).startswith(str(folder / name)) and "\n" not in str(error.value)


FILES = (
    *(f"{name}.npy" for name in COLUMNS),
    *("items.parquet", "users.parquet", "features.parquet", "meta.json"),
)
DAMAGE = {
    "removed": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "one bit flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "noise": lambda path: path.write_bytes(bytes(range(256))),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("name", FILES)
def test_no_damage_of_a_file_is_taken_for_data(sound, tmp_path, name):
    for how, damage in DAMAGE.items():
        folder = tmp_path / how
        shutil.copytree(sound, folder)
        damage(folder / name)
        if name == "meta.json" and how in ("removed", "a folder"):
            with pytest.raises(ConfigError, match="no prepared dataset here"):
                open_dataset(folder)
        else:
            refused(folder, name)


def test_a_file_too_many_or_of_another_name_is_told(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "more")
    np.save(tmp_path / "more" / "weight.npy", np.zeros(5))
    refused(tmp_path / "more", "weight.npy")
    shutil.copytree(sound, tmp_path / "renamed")
    (tmp_path / "renamed" / "rating.npy").rename(tmp_path / "renamed" / "ratings.npy")
    refused(tmp_path / "renamed", "rating.npy")
    shutil.copytree(sound, tmp_path / "hidden")
    (tmp_path / "hidden" / ".DS_Store").write_text("of the file manager")
    assert open_dataset(tmp_path / "hidden").num_events == 5


@pytest.mark.parametrize(
    ("name", "values", "what"),
    [
        ("item", [1, 2, 4, 1, 1], "a value outside of 1 to 3"),
        ("item", [1, 2, 0, 1, 1], "a value outside of 1 to 3"),
        ("timestamp", [5, 9, 4, 1, 4], "times of a user are not in order"),
        ("action", [0, 1, 2, 4, 0], "a value outside of 0 to 3"),
        ("user_features", [[1], [4]], "a value outside of 0 to 3"),
        ("item_features", [[0, 0], [1, -3], [3, 0], [0, 0]], "a value outside of 0 to 3"),
        ("series_value", [0, 2], "a value outside of 1 to 3"),
        ("series_time", [4, 3], "times of a user are not in order"),
        ("offsets", [0, 0, 5], "not ascending from 0 to 5"),
        ("offsets", [1, 2, 5], "not ascending from 0 to 5"),
        ("series_offsets", [0, 1, 1], "not ascending from 0 to 2"),
        ("item", [1, 2, 3], "3 entries, meta.json says 5"),
        ("item", [1.0, 2.0, 3.0, 1.0, 1.0], "float64 .*not a column of int32"),
    ],
)
def test_values_that_no_dataset_has_are_told_also_with_the_right_checksums(
    sound, tmp_path, name, values, what
):
    folder = tmp_path / "dataset"
    shutil.copytree(sound, folder)
    kind = np.float64 if isinstance(values[0], float) else dataset_files.COLUMNS[name]
    np.save(folder / f"{name}.npy", np.array(values, kind))
    meta = json.loads((folder / "meta.json").read_text())
    del meta["checksum"]
    (folder / "meta.json").unlink()
    meta["files"] = folders.manifest(folder)
    (folder / "meta.json").write_text(json.dumps(dataset_files.sealed(meta)))
    with pytest.raises(ConfigError, match=rf"{name}\.npy: .*{what}"):
        open_dataset(folder)


def test_a_slice_of_a_long_column_sees_the_entry_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_files, "_SLICE", 1)
    made(tmp_path / "sound")
    with pytest.raises(ConfigError, match="times of a user are not in order"):
        made(tmp_path / "wrong", timestamp=[9, 5, 1, 4, 4])


def test_a_dataset_of_an_earlier_version_is_to_be_prepared_again(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "old")
    (tmp_path / "old" / "meta.json").write_text('{"version": 1}')
    with pytest.raises(ConfigError, match="version 1, this is 2; delete the folder and prepare it"):
        open_dataset(tmp_path / "old")


def test_the_hash_is_that_of_events_ids_and_features_and_of_nothing_else(tmp_path):
    dataset = made(tmp_path / "dataset")
    source = META | {"source": "csv", "made_from": {"files": ["log.csv"]}, "skipped": {"x": 1}}
    assert made(tmp_path / "0", meta=source).hash == dataset.hash
    others: tuple[dict, ...] = (
        dict(item=[1, 2, 3, 1, 2]),
        dict(timestamp=[5, 9, 1, 4, 5]),
        dict(rating=[1.0, np.nan, 2.0, 3.0, 4.0]),
        dict(offsets=[0, 1, 5], timestamp=[5, 1, 1, 4, 4]),
        dict(action=[0, 1, 2, 3, 3]),
        dict(item_features=[[0, 0], [1, 3], [3, 0], [1, 0]]),
        dict(series_value=[1, 1]),
        dict(users=("a", "c")),
        dict(users=("ab", "")),
        dict(meta=META | {"actions": ["click", "buy"]}),
        dict(features=FEATURES.with_columns(value=pl.Series(["F", "M", "blue"]))),
    )
    hashes = {made(tmp_path / f"other {i}", **other).hash for i, other in enumerate(others)}
    assert len(hashes | {dataset.hash}) == len(others) + 1


def test_the_hash_of_the_events_leaves_out_what_is_known_of_them(tmp_path):
    def events_hash(i: int, **changed) -> str:
        return made(tmp_path / str(i), **changed).meta["events_hash"]

    names = META | {"actions": ["click", "buy"]}
    same = (dict(), dict(rating=[1.0] * 5), dict(action=[0] * 5), dict(meta=names))
    assert len({events_hash(i, **changed) for i, changed in enumerate(same)}) == 1
    others = (dict(), dict(item=[1, 1, 3, 1, 1]), dict(users=("a", "c")))
    assert len({events_hash(10 + i, **changed) for i, changed in enumerate(others)}) == 3


def test_a_copy_is_the_same_dataset_and_outlives_the_original(sound, tmp_path):
    original = tmp_path / "original"
    shutil.copytree(sound, original)
    dataset = open_dataset(original)
    copy = copy_to(dataset, tmp_path / "run" / "dataset")
    assert copy.hash == dataset.hash and copy.meta == dataset.meta
    linked = copy.folder / "item.npy"
    assert linked.samefile(original / "item.npy"), "takes no space"
    before = (copy.folder / "meta.json").stat()
    assert copy_to(dataset, copy.folder).hash == dataset.hash
    assert (copy.folder / "meta.json").stat() == before, "done already"
    shutil.rmtree(original)
    assert open_dataset(copy.folder).events.item.tolist() == COLUMNS["item"]
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == [".dataset.lock", "dataset"]


def test_a_copy_where_files_cannot_be_linked_is_complete_or_absent(sound, tmp_path, monkeypatch):
    def no_link(*args):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", no_link)
    assert copy_to(open_dataset(sound), tmp_path / "copy").events.item.tolist() == COLUMNS["item"]

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ConfigError, match="cannot be written .No space left on device"):
        copy_to(open_dataset(sound), tmp_path / "full")
    assert not (tmp_path / "full").exists() and not list(tmp_path.glob(".full.building-*"))


def test_a_copy_does_not_replace_another_dataset_or_other_files(sound, tmp_path):
    made(tmp_path / "other", item=[1, 1, 1, 1, 1])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    with pytest.raises(ConfigError, match="other: holds another dataset than"):
        copy_to(open_dataset(sound), tmp_path / "other")
    with pytest.raises(ConfigError, match="thesis: cannot be written"):
        copy_to(open_dataset(sound), tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"


def test_a_worker_that_unpickles_a_dataset_does_not_check_it_again(sound, monkeypatch):
    data = pickle.dumps(open_dataset(sound))
    monkeypatch.setattr(folders, "check_manifest", None)
    assert pickle.loads(data).events.item.tolist() == COLUMNS["item"]
