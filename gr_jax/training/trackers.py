"""Where the metrics of a run go besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

A tracker is a function of (step, split, values). Where it writes is the business of its package and
of the environment: WANDB_MODE=offline, MLFLOW_TRACKING_URI, ...
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gr_jax.config import Config, ConfigError, files
from gr_jax.errors import shortened
from gr_jax.files import write_whole
from gr_jax.training.workdir import flatten

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
PROJECT = "gr_jax"  # of Weights & Biases; experiment of MLflow

Log = Callable[[int, str, Mapping[str, float]], None]  # step, split, values


class Tracker(NamedTuple):
    """A place where metrics go."""

    name: str
    log: Log
    close: Callable[[], None]


def check(names: Sequence[str]) -> None:
    """Check that the packages of `train.trackers` are there, before anything else is done.

    Raises:
      ConfigError: one is not; TensorBoard, the default, is then left out.
    """
    for name in names:
        if name != "tensorboard" and not importlib.util.find_spec(PACKAGES[name]):
            raise ConfigError(
                f"config.train.trackers: {name} is not installed: pip install 'gr-jax[{name}]'"
            )


def open_all(config: Config, workdir: Path, *, resume_step: int) -> list[Tracker]:
    """The trackers of `train.trackers` that are installed; each goes on with the run it began."""
    found = []
    for name in config.train.trackers:
        if importlib.util.find_spec(PACKAGES[name]):
            open_one = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}[name]
            found.append(open_one(config, workdir, resume_step))
    return found


def tell(trackers: list[Tracker], step: int, split: str, values: Mapping[str, float]) -> None:
    """Log values everywhere. A tracker that fails is told and left out: the training goes on."""
    for tracker in tuple(trackers):
        try:
            tracker.log(step, split, values)
        except Exception as error:  # of a network, a disk or a server
            trackers.remove(tracker)
            what = shortened(f"{type(error).__name__}: {error}", 300)
            print(
                f"warning: {tracker.name} has nothing from step {step} on ({what})",
                file=sys.stderr,
                flush=True,
            )


def _tensorboard(config: Config, workdir: Path, resume_step: int) -> Tracker:
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step or None)

    def log(step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(f"{split}/{name}", value, step)

    return Tracker("tensorboard", log, writer.close)


def _wandb(config: Config, workdir: Path, resume_step: int) -> Tracker:
    import wandb  # pyright: ignore[reportMissingImports]

    file = workdir / "wandb.id"
    run = wandb.init(
        project=PROJECT,
        name=workdir.name,
        id=file.read_text() if file.is_file() else None,
        resume="allow",
        dir=str(workdir),
        config=flatten(files.to_dict(config)),
    )
    write_whole(file, run.id)

    def log(step: int, split: str, values: Mapping[str, float]) -> None:
        named = {f"{split}/{name}": value for name, value in values.items()}
        if split == "test":  # of the best step, which is past: its curves only go forward
            run.summary.update(named)
        else:
            run.log(named, step=step)

    return Tracker("wandb", log, run.finish)


def _mlflow(config: Config, workdir: Path, resume_step: int) -> Tracker:
    from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]
    from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

    client, file = MlflowClient(), workdir / "mlflow.id"
    if file.is_file():
        run_id = file.read_text()
        client.update_run(run_id, status="RUNNING")
    else:
        experiment = client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else client.create_experiment(PROJECT)
        run_id = client.create_run(number, run_name=workdir.name).info.run_id
        write_whole(file, run_id)
        fields = flatten(files.to_dict(config)).items()
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in fields])

    def log(step: int, split: str, values: Mapping[str, float]) -> None:
        # Its names have no @: ndcg@10 is ndcg_at_10.
        now = int(1000 * time.time())
        named = {f"{split}/{name.replace('@', '_at_')}": x for name, x in values.items()}
        client.log_batch(run_id, metrics=[Metric(key, x, now, step) for key, x in named.items()])

    return Tracker("mlflow", log, lambda: client.set_terminated(run_id))
