"""Preparation by several processes at once."""

import gzip
import multiprocessing
import tempfile
import time

import pytest

from gr_jax.config import DataConfig
from gr_jax.data.dataset import open_dataset
from gr_jax.data.log import preparation

SECONDS = 3.0  # that the first process takes, far more than the second needs to come to the lock


def prepare_slowly(path, prepared, builds, started) -> None:
    """`prepare` in a process of its own; counts the datasets that are made and takes its time."""

    def build(config, raw, folder, meta):
        with builds.get_lock():
            builds.value += 1
        started.set()
        time.sleep(SECONDS)
        return preparation._build(config, raw, folder, meta)

    config = DataConfig(source="csv", path=path, prepared=prepared)
    assert preparation.prepare(config, build=build).num_users == 2


@pytest.mark.parametrize("prepared_before", [False, True])
def test_a_second_process_waits_and_opens_the_dataset_of_the_first(tmp_path, prepared_before):
    raw, prepared = tmp_path / "clicks.csv", tmp_path / "prepared"
    raw.write_text("user_id,item_id,timestamp\na,x,1\na,y,2\nb,x,3\n")
    spawn = multiprocessing.get_context("spawn")
    builds, started = spawn.Value("i", 0), spawn.Event()
    args = (str(raw), str(prepared), builds, started)
    if prepared_before:
        preparation.prepare(DataConfig(source="csv", path=str(raw), prepared=str(prepared)))
    processes = [spawn.Process(target=prepare_slowly, args=args) for _ in range(2)]
    processes[0].start()
    assert prepared_before or started.wait(120)
    processes[1].start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert builds.value == 1 - prepared_before
    assert open_dataset(prepared).num_events == 3
    assert [path.name for path in tmp_path.glob(".*")] == [".prepared.lock"]


def test_what_a_killed_preparation_left_is_removed_by_the_next(tmp_path):
    raw = tmp_path / "clicks.csv"
    raw.write_text("user_id,item_id,timestamp\na,x,1\n")
    left = tmp_path / ".out.building-abcd_123"
    others = [tmp_path / ".out-2.building-abcd_123", tmp_path / ".out.building-mine"]
    for folder in (left, *others):
        folder.mkdir()
        (folder / "item.npy").write_bytes(b"half")
    preparation.prepare(DataConfig(path=str(raw), prepared=str(tmp_path / "out")))
    assert not left.exists() and all(folder.exists() for folder in others)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_everything_that_preparation_writes_on_the_way_is_beside_the_result(
    tmp_path, monkeypatch, end
):
    raw, out = tmp_path / "raw" / f"clicks.csv{end}", tmp_path / "out"
    raw.parent.mkdir()
    text = b"user_id,item_id,timestamp\na,x,1\n"
    raw.write_bytes(gzip.compress(text) if end else text)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    preparation.prepare(DataConfig(path=str(raw), prepared=str(out)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "out", "raw"]
