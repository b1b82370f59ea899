"""Trainings on full disks, with logs that change, and with too large models."""

import errno
import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from gr_jax import evaluate
from gr_jax.config import ConfigError
from gr_jax.training import checksums, metrics_log
from gr_jax.training.checkpoint import NotSaved
from gr_jax.training.loop import Diverged
from gr_jax.training.retrieval import objective as retrieval
from gr_jax.training.workdir import has_checkpoints
from tests.tiny_run import assert_same_state, run_train

ROOT = Path(__file__).resolve().parents[1]


def test_a_full_disk_is_reported_and_training_goes_on(
    config_file, finished, tmp_path, monkeypatch, capsys
):
    saved = ocp.CheckpointManager.save

    def save(self, step, *args, **kwargs):
        if step in (8, 10):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return saved(self, step, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    assert run_train(config_file, tmp_path / "w") == 0
    shown = capsys.readouterr().err
    for step in (8, 10):
        assert f"warning: step {step} could not be saved" in shown
    assert "No space left on device" in shown and "the last checkpoint is step 5" in shown
    assert_same_state(tmp_path / "w", finished)


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_from_the_first_checkpoint_on_fails_and_names_no_step(
    config_file, finished, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patched:
        patched.setattr(ocp.CheckpointManager, "save", no_space)
        with pytest.raises(
            NotSaved, match=r"step \d+ is not saved, there is no checkpoint: make room"
        ):
            run_train(config_file, tmp_path / "w")
    shown = capsys.readouterr()
    assert "there is no checkpoint" in shown.err and "best checkpoint" not in shown.out
    assert not (tmp_path / "w" / "result.json").exists()
    assert run_train(config_file, tmp_path / "w") == 0, "the same command goes on"
    assert_same_state(tmp_path / "w", finished)


def test_a_disk_that_is_full_at_the_last_checkpoint_fails_too(config_file, tmp_path, monkeypatch):
    saved = ocp.CheckpointManager.save

    def save(self, step, *args, **kwargs):
        return no_space() if step > 8 else saved(self, step, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    with pytest.raises(NotSaved, match="the last checkpoint is step 8"):
        run_train(config_file, tmp_path / "w")
    assert not (tmp_path / "w" / "result.json").exists()


def test_a_checkpoint_without_room_for_its_checksums_is_kept(
    config_file, finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(checksums, "write", no_space)
    assert run_train(config_file, tmp_path / "w") == 0
    assert "has no checksums (" in capsys.readouterr().err
    assert_same_state(tmp_path / "w", finished)


def test_lost_lines_of_the_metrics_are_an_error_at_the_end(config_file, tmp_path, monkeypatch):
    written = metrics_log.MetricsLog.write

    def write(self, step, *args):
        with monkeypatch.context() as patched:
            if step == 4:
                patched.setattr(Path, "open", no_space)
            written(self, step, *args)

    monkeypatch.setattr(metrics_log.MetricsLog, "write", write)
    with pytest.raises(ConfigError, match="metrics.jsonl lacks 1 lines"):
        run_train(config_file, tmp_path / "w", "--config.train.steps=6")
    assert json.loads((tmp_path / "w" / "result.json").read_text())["best_step"] == 6


@pytest.mark.parametrize("width", [100_000_000, 2**40])
def test_a_model_larger_than_the_memory_is_one_line_and_nothing_is_allocated(
    config_file, tmp_path, width
):
    with pytest.raises(ConfigError, match=r"take [\d,.]+ GiB, more than the [\d,.]+ GiB of this m"):
        run_train(config_file, tmp_path / "w", f"--config.model.width={width}")
    assert not (tmp_path / "w" / "checkpoints").is_dir() or not has_checkpoints(tmp_path / "w")
    assert run_train(config_file, tmp_path / "w", "--config.train.steps=1") == 0


def test_a_non_finite_loss_stops_with_its_step_and_keeps_the_last_checkpoint(
    config_file, tmp_path, monkeypatch
):
    make_train_step = retrieval.make_train_step

    def poisoned(*args, **kwargs):
        train_step = make_train_step(*args, **kwargs)

        def step(state, batch, key):
            new, metrics = train_step(state, batch, key)
            return new, metrics | {"loss": jnp.where(state.step == 6, jnp.nan, metrics["loss"])}

        return step

    monkeypatch.setattr(retrieval, "make_train_step", poisoned)
    with pytest.raises(Diverged, match="step 7: loss=nan; the last checkpoint is from before it"):
        run_train(config_file, tmp_path / "w")
    monkeypatch.undo()
    assert run_train(config_file, tmp_path / "w", "--config.train.steps=5") == 0, (
        "step 5 is there and can be read"
    )


@pytest.fixture
def own_log(config_file, tmp_path) -> tuple[Path, list[str]]:
    """A copy of the log that a test may change, and the flags that name it."""
    log = Path(shutil.copy(config_file.parent / "log.csv", tmp_path / "mine.csv"))
    return log, [f"--config.data.path={log}", f"--config.data.prepared={tmp_path / 'prepared'}"]


def grow(log: Path) -> None:
    with log.open("a") as file:
        file.write("u0,i1,1900000000\n")


def rename_an_item(log: Path) -> None:
    log.write_text(log.read_text().replace(",i0,", ",zero,"))


def reverse_times(log: Path) -> None:
    """As many events of the same users and items, in another order."""
    head, *lines = log.read_text().splitlines()
    words = [line.split(",") for line in lines]
    lines = [f"{user},{item},{3 * 10**9 - int(time)}" for user, item, time in words]
    log.write_text("\n".join([head, *lines]) + "\n")


@pytest.mark.parametrize("change", [grow, rename_an_item, reverse_times, Path.unlink])
def test_a_run_is_evaluated_whatever_becomes_of_its_log(
    config_file, finished, own_log, tmp_path, monkeypatch, change
):
    log, flags = own_log
    assert run_train(config_file, tmp_path / "w", *flags, "--config.train.steps=5") == 0
    result = json.loads((tmp_path / "w" / "result.json").read_text())
    change(log)
    shutil.rmtree(tmp_path / "prepared")
    moved = Path(shutil.move(tmp_path / "w", tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)
    assert evaluate.evaluate(Path(moved.name), "test") == pytest.approx(result["test"])


@pytest.mark.parametrize("change", [grow, rename_an_item, reverse_times])
def test_a_training_does_not_go_on_with_another_log(config_file, own_log, tmp_path, change):
    log, flags = own_log
    assert run_train(config_file, tmp_path / "w", *flags, "--config.train.steps=5") == 0
    change(log)
    with pytest.raises(
        ConfigError, match="the log has changed .* train on it in another --workdir"
    ):
        run_train(config_file, tmp_path / "w", *flags)
    assert evaluate.evaluate(tmp_path / "w", "test")
    flags[1] = f"--config.data.prepared={tmp_path / 'newer'}"
    assert run_train(config_file, tmp_path / "other", *flags, "--config.train.steps=1") == 0


def test_a_training_goes_on_without_its_log_or_with_the_same_in_another_place(
    config_file, finished, own_log, tmp_path, capsys
):
    log, flags = own_log
    assert run_train(config_file, tmp_path / "w", *flags, "--config.train.steps=5") == 0
    (tmp_path / "new").mkdir()
    flags[0] = f"--config.data.path={log.rename(tmp_path / 'new' / 'name.csv')}"
    assert run_train(config_file, tmp_path / "w", *flags, "--config.train.steps=8") == 0
    shutil.rmtree(tmp_path / "new")
    shutil.rmtree(tmp_path / "prepared")
    assert run_train(config_file, tmp_path / "w", *flags) == 0
    assert "the log is not there any more: going on with" in capsys.readouterr().out
    assert_same_state(tmp_path / "w", finished)


def test_a_run_without_a_dataset_of_its_own_takes_the_log_if_it_is_the_same(
    config_file, finished, own_log, tmp_path
):
    log, flags = own_log
    assert run_train(config_file, tmp_path / "w", *flags, "--config.train.steps=5") == 0
    result = json.loads((tmp_path / "w" / "result.json").read_text())
    shutil.rmtree(tmp_path / "w" / "dataset")
    assert evaluate.evaluate(tmp_path / "w", "test") == pytest.approx(result["test"])
    grow(log)
    with pytest.raises(ConfigError, match="dataset: no dataset there, and none from the log"):
        evaluate.evaluate(tmp_path / "w", "test")


def test_a_damaged_result_is_written_anew_by_the_same_command(config_file, finished, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "w"))
    (copy / "result.json").write_text('{"best_st')
    assert run_train(config_file, copy) == 0
    before, after = (json.loads((d / "result.json").read_text()) for d in (finished, copy))
    assert after["test"] == before["test"] and after["best_step"] == before["best_step"]
