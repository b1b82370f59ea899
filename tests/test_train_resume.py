"""Trainings that stop, are killed or finished, and go on."""

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
import pytest

from gr_jax import evaluate
from gr_jax.training.retrieval import objective as retrieval
from gr_jax.training.run import Run
from tests.tiny_run import assert_same_state, final_state, lines_of, run_train

ROOT = Path(__file__).resolve().parents[1]


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


def test_a_run_of_more_devices_than_there_are_is_evaluated_on_those_that_are_there(
    finished, tmp_path
):
    copy = Path(shutil.copytree(finished, tmp_path / "w"))
    config = json.loads((copy / "config.json").read_text())
    config["mesh"] |= {"data": 8, "model": 2}
    (copy / "config.json").write_text(json.dumps(config))
    here, there = (evaluate.evaluate(workdir, "test") for workdir in (copy, finished))
    assert here == pytest.approx(there, abs=1e-6)


def test_what_has_a_checkpoint_makes_no_fresh_state_beside_it(
    config_file, finished, tmp_path, monkeypatch
):
    copy = Path(shutil.copytree(finished, tmp_path / "w"))
    monkeypatch.setattr(Run, "fresh_state", None)
    assert run_train(config_file, copy) == 0
    result = json.loads((finished / "result.json").read_text())
    assert evaluate.evaluate(copy, "test") == pytest.approx(result["test"])


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
