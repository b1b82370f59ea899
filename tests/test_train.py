"""Training from the command line to the result."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gr_jax import cli, evaluate, train
from gr_jax.config import ConfigError
from gr_jax.training.checkpoint import Checkpoints
from gr_jax.training.retrieval import objective as retrieval
from gr_jax.training.workdir import only_training
from tests.tiny_run import lines_of, run_train

ROOT = Path(__file__).resolve().parents[1]


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


def test_checkpoints_without_their_config_are_not_taken_over(config_file, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "w")
    (tmp_path / "w" / "config.json").unlink()
    with pytest.raises(
        ConfigError, match=r"holds checkpoints but no config.json, .* or choose another --workdir"
    ):
        run_train(config_file, tmp_path / "w")


def test_another_config_may_not_take_over_a_workdir(config_file, finished):
    with pytest.raises(
        ConfigError,
        match=r"holds a run with config.model.width=16, not 32: choose another --workdir",
    ):
        run_train(config_file, finished, "--config.model.width=32")


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
