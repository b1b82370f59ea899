"""The identity of a dataset: a run goes on with, and is judged on, the contents it began with."""

from __future__ import annotations

from pathlib import Path

from gr_jax import folders
from gr_jax.config import ConfigError
from gr_jax.data.dataset import Dataset

DATASET_FILE = "dataset.json"  # in a workdir


def identity(dataset: Dataset) -> dict[str, int | str]:
    """The hash of the contents, which decides; that of the events alone; and counts for people.

    Where the dataset lies, and from which files it was made, does not matter.
    """
    counts = {name: getattr(dataset, name) for name in ("num_users", "num_items", "num_events")}
    return counts | {"hash": dataset.hash, "events_hash": dataset.meta["events_hash"]}


def check_dataset(workdir: Path, dataset: Dataset) -> None:
    """Check that the run in `workdir` was trained on `dataset`, if its dataset.json is there.

    Raises:
      ConfigError: it was trained on another one, or dataset.json is damaged.
    """
    path = workdir / DATASET_FILE
    if not path.exists():
        return
    remedy = "delete it if you know that the log has not changed"
    before, now = folders.read_json(path, remedy=remedy), identity(dataset)
    if "hash" not in before:
        raise ConfigError(f"{path}: no hash of the contents (an earlier version); {remedy}")
    if before["hash"] == now["hash"]:
        return
    changed = [
        f"{name} is {now[name]:,}, was {before[name]:,}"
        for name in ("num_users", "num_items", "num_events")
        if isinstance(before.get(name), int) and before[name] != now[name]
    ]
    what = ", ".join(changed) or "as many users, items and events, but not the same"
    raise ConfigError(
        f"{dataset.folder}: not the dataset that the run in {workdir} was trained on ({what}): the"
        " log has changed; put the old one back, or train in another --workdir"
    )
