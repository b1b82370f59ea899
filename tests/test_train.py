import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gr_jax import cli, evaluate, train
from gr_jax.config import ConfigError
from gr_jax.training import checksums, metrics_log
from gr_jax.training.checkpoint import Checkpoints, NotSaved
from gr_jax.training.loop import Diverged
from gr_jax.training.retrieval import objective as retrieval
from gr_jax.training.run import Run
from gr_jax.training.workdir import has_checkpoints, only_training

ROOT = Path(__file__).resolve().parents[1]

CONFIG = """
from gr_jax.config import *

def get_config(variant=""):
    return Config(
        data=DataConfig(
            source="csv", path={path!r}, prepared={prepared!r}, max_length=16, row_length=32
        ),
        model=ModelConfig(width=16, num_blocks=1, qk_width=8, v_width=8),
        loss=LossConfig(kind="group", negatives=8, group=8),
        train=TrainConfig(epochs=3, batch_users=8, log_every=2, patience=0, checkpoint_every=5),
        mesh=MeshConfig(data=1),
    )
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    """A config on a small CSV log: 64 users walk through 40 items in order, from a random start."""
    folder = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp"]
    for user in range(64):
        start = rng.integers(40)
        times = 10**9 + np.cumsum(rng.integers(1, 10**5, 14))
        lines += [f"u{user},i{(start + step) % 40},{t}" for step, t in enumerate(times)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    config = folder / "tiny.py"
    config.write_text(
        CONFIG.format(path=str(folder / "log.csv"), prepared=str(folder / "prepared"))
    )
    return config


def run_train(config_file: Path, workdir: Path, *overrides: str) -> int:
    return train.main(
        [f"--config={config_file}", f"--workdir={workdir}", "--report=false", *overrides]
    )


def lines_of(workdir: Path, split: str) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def final_state(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by name."""
    from jax.tree_util import keystr, tree_leaves_with_path

    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        restored = checkpoints.newest_arrays()
    finally:
        checkpoints.close()
    return {keystr(path): np.asarray(leaf) for path, leaf in tree_leaves_with_path(restored)}


def assert_same_state(a: Path, b: Path) -> None:
    ours, theirs = final_state(a), final_state(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.fixture(scope="module")
def finished(config_file, tmp_path_factory) -> Path:
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert run_train(config_file, workdir) == 0
    return workdir


def test_a_run_leaves_its_config_checkpoints_metrics_and_result(finished):
    assert json.loads((finished / "config.json").read_text())["model"]["width"] == 16
    assert any((finished / "checkpoints").iterdir())
    train_line, valid_line, test_line = (
        lines_of(finished, split)[-1] for split in ("train", "valid", "test")
    )
    assert {
        "step",
        "epoch",
        "time",
        "loss",
        "users_per_second",
        "tokens_per_second",
        "step_ms",
    } <= train_line.keys()
    names = {
        "hr@1",
        "hr@10",
        "hr@50",
        "hr@200",
        "ndcg@10",
        "ndcg@50",
        "ndcg@200",
        "mrr",
        "log_perplexity",
    }
    assert names <= valid_line.keys() and names <= test_line.keys()
    result = json.loads((finished / "result.json").read_text())
    assert {
        "test",
        "valid",
        "best_step",
        "seed",
        "wall_seconds",
        "dataset",
        "versions",
    } <= result.keys()
    assert result["dataset"]["num_users"] == 64
    best = max(lines_of(finished, "valid"), key=lambda line: line["ndcg@10"])
    assert result["valid"]["ndcg@10"] == pytest.approx(best["ndcg@10"])


def test_training_learns(finished):
    losses = [line["loss"] for line in lines_of(finished, "train")]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_evaluate_repeats_the_metrics_of_the_result(finished, capsys):
    result = json.loads((finished / "result.json").read_text())
    for split in ("test", "valid"):
        assert evaluate.main([f"--workdir={finished}", f"--split={split}"]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out) == pytest.approx(result[split])
        assert ("item-kNN" in said.err) == (split == "test")
    assert evaluate.main([f"--workdir={finished}", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == pytest.approx(result["test"]) and not said.err


def test_a_finished_run_is_not_trained_again(config_file, finished):
    before = lines_of(finished, "train"), lines_of(finished, "test")
    assert run_train(config_file, finished) == 0
    assert (lines_of(finished, "train"), lines_of(finished, "test")) == before


def test_a_run_stopped_and_resumed_equals_the_uninterrupted_one(config_file, finished, tmp_path):
    assert run_train(config_file, tmp_path / "parts", "--config.train.steps=7") == 0
    assert run_train(config_file, tmp_path / "parts") == 0
    assert_same_state(tmp_path / "parts", finished)


def test_every_step_is_in_the_metrics_once_however_often_the_run_is_resumed(
    config_file, finished, tmp_path
):
    for steps in (3, 8, 0):
        assert run_train(config_file, tmp_path / "parts", f"--config.train.steps={steps}") == 0
    told = [
        [(line["step"], line["loss"]) for line in lines_of(workdir, "train")]
        for workdir in (tmp_path / "parts", finished)
    ]
    assert told[0] == told[1] and told[0][0][0] == 2
    each = [f"--config.train.steps={steps}" for steps in (1, 3)]
    for flag in each:
        assert run_train(config_file, tmp_path / "each", flag, "--config.train.log_every=1") == 0
    lines = lines_of(tmp_path / "each", "train")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert np.mean([line["loss"] for line in lines[:2]]) == pytest.approx(told[1][0][1])


def test_a_run_that_patience_ended_says_so_and_what_to_raise(
    config_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(retrieval.Retrieval, "score", lambda self, result, done: -float(done))
    told = "patience ended the run after step 16 of 24: 1 validations without a better one"
    assert run_train(config_file, tmp_path, "--config.train.patience=1") == 0
    assert told in capsys.readouterr().out
    longer = ("--config.train.epochs=4", "--config.train.patience=1")
    assert run_train(config_file, tmp_path, *longer) == 0
    shown = capsys.readouterr().out
    assert "after step 16 of 32: " in shown and "resuming" not in shown
    assert "to go on raise --config.train.patience" in shown
    assert run_train(config_file, tmp_path, "--config.train.patience=2") == 0
    shown = capsys.readouterr().out
    assert ": resuming" in shown and lines_of(tmp_path, "valid")[-1]["step"] == 24


@pytest.mark.parametrize("devices", [(6, 1), (3, 5)])
def test_a_run_on_any_numbers_of_devices_sees_the_same_batches(
    config_file, finished, tmp_path, devices, capsys
):
    for steps, data in zip((7, 0), devices, strict=True):
        flags = [f"--config.train.steps={steps}", f"--config.mesh.data={data}"]
        assert run_train(config_file, tmp_path / "parts", *flags) == 0
    ours, theirs = final_state(tmp_path / "parts"), final_state(finished)
    for name in theirs:  # other sums, so not to the last bit; tables may have unused entries
        used = slice(None, 41) if "table" in name else ...
        np.testing.assert_allclose(
            ours[name][used], theirs[name][used], rtol=1e-3, atol=1e-5, err_msg=name
        )
    losses = [
        [line["loss"] for line in lines_of(workdir, "train")]
        for workdir in (tmp_path / "parts", finished)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    if devices == (3, 5):
        assert (
            "shards  5; empty rows added to a batch: 1 of 5 (25.0% more" in capsys.readouterr().out
        )
    result = json.loads((tmp_path / "parts" / "result.json").read_text())
    assert evaluate.evaluate(tmp_path / "parts", "test") == pytest.approx(result["test"], abs=1e-5)


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


def test_checkpoints_without_their_config_are_not_taken_over(config_file, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "w")
    (tmp_path / "w" / "config.json").unlink()
    with pytest.raises(
        ConfigError, match=r"holds checkpoints but no config.json, .* or choose another --workdir"
    ):
        run_train(config_file, tmp_path / "w")


ROW_WISE = ("--config.optimizer.table=rowwise_adamw", "--config.optimizer.table_dtype=bfloat16")


def test_a_run_with_row_wise_tables_learns_resumes_and_is_evaluated(
    config_file, finished, tmp_path, capsys
):
    assert run_train(config_file, tmp_path / "parts", *ROW_WISE, "--config.train.steps=7") == 0
    assert run_train(config_file, tmp_path / "parts", *ROW_WISE) == 0
    assert run_train(config_file, tmp_path / "whole", *ROW_WISE) == 0
    assert_same_state(tmp_path / "parts", tmp_path / "whole")
    names = final_state(tmp_path / "whole")
    assert names["['params']['embeddings']['item_table']"].dtype == jnp.bfloat16
    assert names["['opt_state']['tables']['item_table']['nu']"].ndim == 1
    losses = [line["loss"] for line in lines_of(tmp_path / "whole", "train")]
    dense = [line["loss"] for line in lines_of(finished, "train")]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert losses[0] == pytest.approx(dense[0], rel=0.01) and losses[-1] == pytest.approx(
        dense[-1], rel=0.2
    )
    capsys.readouterr()
    assert evaluate.main([f"--workdir={tmp_path / 'whole'}", "--split=test"]) == 0
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert json.loads(capsys.readouterr().out) == pytest.approx(result["test"])


def test_another_config_may_not_take_over_a_workdir(config_file, finished):
    with pytest.raises(
        ConfigError,
        match=r"holds a run with config.model.width=16, not 32: choose another --workdir",
    ):
        run_train(config_file, finished, "--config.model.width=32")


@pytest.mark.parametrize("width", [100_000_000, 2**40])
def test_a_model_larger_than_the_memory_is_one_line_and_nothing_is_allocated(
    config_file, tmp_path, width
):
    with pytest.raises(ConfigError, match=r"take [\d,.]+ GiB, more than the [\d,.]+ GiB of this m"):
        run_train(config_file, tmp_path / "w", f"--config.model.width={width}")
    assert not (tmp_path / "w" / "checkpoints").is_dir() or not has_checkpoints(tmp_path / "w")
    assert run_train(config_file, tmp_path / "w", "--config.train.steps=1") == 0


def test_the_config_of_an_older_version_is_read_if_nothing_in_it_is_gone(
    config_file, finished, tmp_path
):
    copy = Path(shutil.copytree(finished, tmp_path / "w"))
    config = json.loads((copy / "config.json").read_text())
    del config["evaluate"]["valid_users"]  # a field that came later
    (copy / "config.json").write_text(json.dumps(config))
    assert run_train(config_file, copy) == 0
    assert "valid_users" in json.loads((copy / "config.json").read_text())["evaluate"]

    config["train"]["rehearsals"] = 3  # a field that went
    (copy / "config.json").write_text(json.dumps(config))
    for use in (lambda: run_train(config_file, copy), lambda: evaluate.evaluate(copy, "test")):
        with pytest.raises(ConfigError, match="'rehearsals': was it written by another version"):
            use()


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


def test_a_start_that_failed_does_not_take_the_workdir(config_file, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.data\.row_length=8"):
        run_train(config_file, tmp_path / "w", "--config.data.row_length=8")
    with pytest.raises(ConfigError, match="no such file"):
        run_train(
            config_file, tmp_path / "w", "--config.data.path=no.csv", "--config.data.prepared="
        )
    assert run_train(config_file, tmp_path / "w", "--config.train.steps=2") == 0


def test_a_start_that_logged_nothing_gives_way_to_another_log(config_file, finished, tmp_path):
    workdir = tmp_path / "w"
    workdir.mkdir()
    shutil.copy(finished / "config.json", workdir)
    identity = json.loads((finished / "dataset.json").read_text())
    (workdir / "dataset.json").write_text(json.dumps(identity | {"num_items": 41}))
    assert run_train(config_file, workdir, "--config.train.steps=2") == 0
    assert json.loads((workdir / "dataset.json").read_text()) == identity


def test_a_finished_run_keeps_its_config_when_a_restart_fails(config_file, finished, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "w"))
    with pytest.raises(ConfigError, match=r"mesh\.data=64"):
        run_train(config_file, copy, "--config.mesh.data=64")
    assert (copy / "config.json").read_text() == (finished / "config.json").read_text()


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


def test_a_run_of_more_devices_than_there_are_is_evaluated_on_those_that_are_there(
    finished, tmp_path
):
    copy = Path(shutil.copytree(finished, tmp_path / "w"))
    config = json.loads((copy / "config.json").read_text())
    config["mesh"] |= {"data": 8, "model": 2}
    (copy / "config.json").write_text(json.dumps(config))
    here, there = (evaluate.evaluate(workdir, "test") for workdir in (copy, finished))
    assert here == pytest.approx(there, abs=1e-6)


def test_a_workdir_in_training_is_evaluated_but_not_trained_by_another(
    config_file, finished, tmp_path
):
    copy = Path(shutil.copytree(finished, tmp_path / "w"))
    partial = copy / "checkpoints" / "99.orbax-checkpoint-tmp-0"
    partial.mkdir()
    with only_training(copy):
        with pytest.raises(ConfigError, match=f"{copy}: another training runs there"):
            run_train(config_file, copy)
        assert evaluate.evaluate(copy, "test") == evaluate.evaluate(finished, "test")
    assert partial.exists()
    assert run_train(config_file, copy) == 0 and not partial.exists()


def test_what_has_a_checkpoint_makes_no_fresh_state_beside_it(
    config_file, finished, tmp_path, monkeypatch
):
    copy = Path(shutil.copytree(finished, tmp_path / "w"))
    monkeypatch.setattr(Run, "fresh_state", None)
    assert run_train(config_file, copy) == 0
    result = json.loads((finished / "result.json").read_text())
    assert evaluate.evaluate(copy, "test") == pytest.approx(result["test"])


@pytest.mark.parametrize("best_epoch", [1, 2])
def test_the_end_reads_the_best_checkpoint_if_it_is_not_the_newest(
    config_file, tmp_path, monkeypatch, best_epoch
):
    def restore(self, target, *, step=None):
        restored.append(step)
        return read(self, target, step=step)

    restored, read = [], Checkpoints.restore
    score = lambda self, result, epochs_done: float(epochs_done == best_epoch)
    monkeypatch.setattr(retrieval.Retrieval, "score", score)
    monkeypatch.setattr(Checkpoints, "restore", restore)
    assert run_train(config_file, tmp_path, "--config.train.epochs=2") == 0
    best = lines_of(tmp_path, "valid")[best_epoch - 1]["step"]
    assert restored == ([None, best] if best_epoch == 1 else [None])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["best_step"] == best
    assert evaluate.evaluate(tmp_path, "test") == pytest.approx(result["test"])


def test_a_damaged_result_is_written_anew_by_the_same_command(config_file, finished, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "w"))
    (copy / "result.json").write_text('{"best_st')
    assert run_train(config_file, copy) == 0
    before, after = (json.loads((d / "result.json").read_text()) for d in (finished, copy))
    assert after["test"] == before["test"] and after["best_step"] == before["best_step"]


LONG = "--config.train.epochs=15"  # so that the run is still going when a signal arrives


def start(config_file: Path, workdir: Path) -> subprocess.Popen:
    """The command in a process of its own, with the devices and compiled programs of this one."""
    flags = [f"--config={config_file}", f"--workdir={workdir}", "--report=false", LONG]
    return subprocess.Popen(
        [sys.executable, "-m", "gr_jax.train", *flags],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_step(workdir: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if any(line["step"] >= step for line in lines_of(workdir, "train")):
                return
        except (FileNotFoundError, json.JSONDecodeError):
            pass
        time.sleep(0.01)


@pytest.fixture(scope="module")
def long_run(config_file, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "long"
    assert run_train(config_file, workdir, LONG) == 0
    return workdir


def test_sigterm_saves_and_the_same_command_goes_on(config_file, long_run, tmp_path):
    process = start(config_file, tmp_path / "w")
    wait_for_step(tmp_path / "w", 11, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "interrupted: step" in output and "Traceback" not in output
    assert run_train(config_file, tmp_path / "w", LONG) == 0
    assert_same_state(tmp_path / "w", long_run)


def test_kill_9_and_resume_equals_the_uninterrupted_run(config_file, long_run, tmp_path):
    for step in (9, 60):
        process = start(config_file, tmp_path / "w")
        wait_for_step(tmp_path / "w", step, process)
        process.kill()
        output, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, output
    assert run_train(config_file, tmp_path / "w", LONG) == 0
    assert_same_state(tmp_path / "w", long_run)
    steps = [line["step"] for line in lines_of(tmp_path / "w", "train")]
    assert steps == sorted(set(steps)), "a step is logged twice"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config=configs/ml_2m.py"],
            "error: --config: no file 'configs/ml_2m.py'; did you mean 'configs/ml_",
        ),
        (
            ["--config=configs/ml_1m.py:bas"],
            "error: --config: no variant 'bas', only base, large, swiglu, sasrec",
        ),
        (
            ["--config=configs/ml_1m.py", "--config.model.widht=3"],
            "did you mean config.model.width",
        ),
        (
            ["--config=configs/ml_1m.py", "--config.model.width=wide"],
            "config.model.width: expected int, got 'wide'",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as done:
        cli.run(train.main)
    assert done.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown and len(shown.strip().splitlines()) == 1


def test_a_mistake_is_all_that_a_process_writes():
    done = subprocess.run(
        [sys.executable, "-m", "gr_jax.train", "--config=configs/ml_2m.py"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --config: no file 'configs/ml_2m.py'")
    assert len(done.stderr.strip().splitlines()) == 1
