"""Metrics at TensorBoard, Weights & Biases and MLflow, in local files; a stand-in shows a failure.

The packages of the last two are no part of the tests' environment, which skip without them.
"""

import pytest

from gr_jax.config import Config, ConfigError, TrainConfig
from gr_jax.training import trackers
from gr_jax.training.metrics_log import MetricsLog

CURVE = [("train", 2, {"loss": 2.0}), ("valid", 4, {"ndcg@10": 0.25}), ("test", 2, {"hr@10": 0.5})]


def write_curve(workdir, name: str, resume_step: int = 0) -> None:
    config = Config(train=TrainConfig(trackers=(name,)))
    workdir.mkdir(exist_ok=True)
    log = MetricsLog(
        workdir,
        resume_step=resume_step,
        open_trackers=lambda: trackers.open_all(config, workdir, resume_step=resume_step),
    )
    for split, step, values in CURVE:
        log.write(resume_step + step, 1, split, values)
    log.close()


def test_tensorboard_has_the_values_by_split_and_step(tmp_path):
    pytest.importorskip("tensorboardX")
    write_curve(tmp_path / "run", "tensorboard")
    (file,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"train/loss" in file.read_bytes() and b"valid/ndcg_10" in file.read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_wandb_has_the_values_offline_and_a_resumed_run_is_the_same(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for resume_step in (0, 4):
        write_curve(tmp_path / "run", "wandb", resume_step)
    name = (tmp_path / "run" / "wandb.id").read_text()
    files = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{name}.wandb"))
    assert len(files) == 2, "both sessions, of one run"
    for key in (b"train/loss", b"valid/ndcg@10", b"test/hr@10"):
        assert key in files[0].read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_the_values_and_the_config_and_a_resumed_run_is_the_same(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    for resume_step in (0, 4):
        write_curve(tmp_path / "run", "mlflow", resume_step)
    client, run_id = mlflow.MlflowClient(), (tmp_path / "run" / "mlflow.id").read_text()
    found = client.get_run(run_id)
    assert found.data.metrics == {"train/loss": 2.0, "valid/ndcg_at_10": 0.25, "test/hr_at_10": 0.5}
    assert [m.step for m in client.get_metric_history(run_id, "valid/ndcg_at_10")] == [4, 8]
    assert found.data.params["model.width"] == "50" and found.info.status == "FINISHED"


def test_a_tracker_that_fails_is_told_once_and_the_training_goes_on(tmp_path, monkeypatch, capsys):
    def fail(step, split, values):
        raise ConnectionError("no\nroute")

    log = MetricsLog(
        tmp_path, open_trackers=lambda: [trackers.Tracker("wandb", fail, lambda: None)]
    )
    for step in (1, 2):
        log.write(step, 0, "train", {"loss": 1.0})
    log.close()
    assert capsys.readouterr().err == (
        "warning: wandb has nothing from step 1 on (ConnectionError: no route)\n"
    )
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_tracker_that_is_not_installed_or_not_known_is_one_line(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    trackers.check(("tensorboard",))
    for name in ("wandb", "mlflow"):
        with pytest.raises(ConfigError, match=rf"pip install 'gr-jax\[{name}\]'"):
            trackers.check((name,))
    with pytest.raises(ConfigError, match="config.train.trackers='comet': must be one of"):
        TrainConfig(trackers=("comet",))
