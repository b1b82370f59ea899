"""A run belongs to the contents that it was trained on, wherever they lie."""

import json
import shutil
from pathlib import Path

import pytest

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.dataset import Dataset, open_dataset
from gr_jax.data.dataset_identity import DATASET_FILE, check_dataset, identity
from gr_jax.data.log.preparation import prepare

LOG = [("a", "x", 1), ("a", "y", 2), ("b", "y", 1), ("b", "x", 2)]


def made(folder: Path, events) -> Dataset:
    folder.mkdir()
    rows = "".join(f"{user},{item},{time}\n" for user, item, time in events)
    (folder / "log.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    return prepare(DataConfig(path=str(folder), prepared=str(folder / "out")))


@pytest.fixture
def workdir(tmp_path) -> Path:
    """A workdir whose run was trained on LOG."""
    (tmp_path / "run").mkdir()
    dataset = made(tmp_path / "log", LOG)
    (tmp_path / "run" / DATASET_FILE).write_text(json.dumps(identity(dataset)))
    return tmp_path / "run"


def test_the_same_contents_from_another_file_and_place_are_the_same_dataset(workdir, tmp_path):
    check_dataset(workdir, made(tmp_path / "again", sorted(LOG, key=lambda event: event[1:])))
    shutil.move(tmp_path / "log" / "out", tmp_path / "moved")
    check_dataset(workdir, open_dataset(tmp_path / "moved"))


@pytest.mark.parametrize(
    ("events", "what"),
    [
        ([(u, i, 3 - t) for u, i, t in LOG], "as many users, items and events, but not the same"),
        ([*LOG[:3], ("b", "z", 2)], "num_items is 3, was 2"),
        ([*LOG[:3], ("b", "y", 2)], "as many users, items and events, but not the same"),
        ([*LOG, ("b", "x", 9)], "num_events is 5, was 4"),
    ],
)
def test_other_contents_are_another_dataset_however_alike_their_counts(
    workdir, tmp_path, events, what
):
    with pytest.raises(ConfigError, match=f"not the dataset that .* trained on .{what}"):
        check_dataset(workdir, made(tmp_path / "other", events))


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"num_users": 2, "ids": "ab"}', "\udcff"])
def test_a_damaged_or_earlier_record_is_told_in_one_line(workdir, text):
    (workdir / DATASET_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match="dataset.json: .*; delete it if you know") as error:
        check_dataset(workdir, open_dataset(workdir.parent / "log" / "out"))
    assert "\n" not in str(error.value)
