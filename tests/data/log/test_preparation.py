"""Preparation by several processes at once."""

import multiprocessing
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
    assert not list(tmp_path.glob(".*")), "neither lock nor half a dataset is left"
