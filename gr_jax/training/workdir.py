"""The rules of a workdir: one training at a time, one config and one dataset in its life.

A second training at the same time would remove the checkpoints that the first is writing. The ids
in a checkpoint mean the same items only with the same dataset, so a run has its own, whatever
becomes of the log.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from gr_jax.config import Config, ConfigError, files
from gr_jax.data import run_dataset
from gr_jax.data.dataset import Dataset, open_dataset
from gr_jax.data.dataset_identity import DATASET_FILE, identity
from gr_jax.files import write_whole
from gr_jax.folders import take_lock
from gr_jax.training import processes

# Fields that may differ on resuming: they change how long, where or how loudly a run goes and
# what it tells, not what it learns.
FREE_ON_RESUME = (
    "train.epochs",
    "train.steps",
    "train.log_every",
    "train.patience",
    "train.checkpoint_every",
    "train.trackers",
    "evaluate.at",
    "mesh",
    "data.path",
    "data.prepared",
)


@contextlib.contextmanager
def only_training(workdir: Path) -> Iterator[None]:
    """Keep other trainings out of `workdir`, which is made if it is not there.

    Of several processes the first holds the lock. The kernel releases it however that process ends.
    Readers of a workdir do not take it.

    Raises:
      ConfigError: another training is inside.
    """
    taken = "another training runs there; wait for its end, or choose another --workdir"
    lock = processes.on_first(lambda: take_lock(workdir, taken=f"{workdir}: {taken}"))
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def check_config(workdir: Path, config: Config) -> None:
    """Check that `workdir` may become, or is, the home of `config`; the first process looks.

    Raises:
      ConfigError: the folder holds a run with another config (names the first field that differs)
        or checkpoints of an unknown one. A run that has logged nothing yet may be replaced.
    """
    processes.on_first(lambda: _check_config(workdir, config))


def _check_config(workdir: Path, config: Config) -> None:
    path = workdir / "config.json"
    if path.exists() and has_begun(workdir):
        before, now = (flatten(files.to_dict(c)) for c in (files.read(path), config))
        for name, value in now.items():
            if before[name] != value and not name.startswith(FREE_ON_RESUME):
                raise ConfigError(
                    f"{workdir} holds a run with config.{name}={before[name]!r}, not {value!r}:"
                    " choose another --workdir"
                )
    elif has_checkpoints(workdir):
        raise ConfigError(
            f"{workdir} holds checkpoints but no config.json, so it is not known what they belong"
            " to: put the config.json back, or choose another --workdir"
        )


def flatten(values: dict, prefix: str = "") -> dict:
    """Nested dicts as one dict with dotted names.

    >>> flatten({"seed": 0, "model": {"width": 64}})
    {'seed': 0, 'model.width': 64}
    """
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def has_checkpoints(workdir: Path) -> bool:
    """True if a run there has saved something."""
    checkpoints = workdir / "checkpoints"
    return checkpoints.is_dir() and any(checkpoints.iterdir())


def has_begun(workdir: Path) -> bool:
    """True if a run there has logged or saved something; else another one may take its place."""
    return has_checkpoints(workdir) or (workdir / "metrics.jsonl").exists()


def dataset_to_train_on(workdir: Path, config: Config) -> Dataset:
    """The dataset of the run, in its workdir: put there at the start, the same when it resumes.

    Of several processes the first prepares the log; the others open what it made.

    Raises:
      ConfigError: the log cannot be prepared, or is not the one that the run began with; or the
        processes do not share the folder.
    """
    begun = has_begun(workdir)
    dataset = processes.on_first(lambda: run_dataset.keep(workdir, config.data, has_begun=begun))
    if not processes.all_true(run_dataset.is_kept(workdir)):
        raise ConfigError(
            f"{workdir}: not seen by all processes; choose a --workdir on a disk that they share"
        )
    return open_dataset(workdir / run_dataset.FOLDER) if dataset is None else dataset


def claim(workdir: Path, config: Config, dataset: Dataset) -> None:
    """Write config.json and dataset.json, once it is known that the run can begin."""
    processes.on_first(lambda: _claim(workdir, config, dataset))


def _claim(workdir: Path, config: Config, dataset: Dataset) -> None:
    files.save(config, workdir / "config.json")
    path = workdir / DATASET_FILE
    if not (has_begun(workdir) and path.exists()):  # else it was just compared
        write_whole(path, json.dumps(identity(dataset), indent=2) + "\n")
