"""Which log a run was trained on: ids of its checkpoint mean the same items only in the same dataset."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from gr_jax.config import ConfigError
from gr_jax.data.dataset import Dataset
from gr_jax.files import write_whole

FILE = "dataset.json"  # in a workdir


def identity(dataset: Dataset) -> dict[str, int | str]:
    """Counts, and a SHA-256 of what the ids of items and feature values stand for; not of where the dataset lies."""
    digest = hashlib.sha256()
    for table, names in (
        (dataset.catalogue.items, ("raw",)),
        (dataset.catalogue.features, ("feature", "value")),
    ):
        for part in table.select(names).iter_slices(1 << 17):
            digest.update(
                "".join(f"{name}\n" for column in names for name in part[column]).encode()
            )
    counts = {name: getattr(dataset, name) for name in ("num_users", "num_items", "num_events")}
    return counts | {"ids": digest.hexdigest()}


def remember(workdir: Path, dataset: Dataset) -> None:
    """Writes the identity of the dataset beside the config of a run."""
    write_whole(workdir / FILE, json.dumps(identity(dataset), indent=2) + "\n")


def check(workdir: Path, dataset: Dataset) -> None:
    """Raises a ConfigError where the dataset is not the one that the run in `workdir` was trained on, if it tells."""
    path = workdir / FILE
    if not path.exists():
        return
    try:
        before = dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise ConfigError(
            f"{path}: damaged; delete it if you know that the log has not changed"
        ) from None
    for name, now in identity(dataset).items():
        if before.get(name) == now:
            continue
        what = (
            f"{name} is {now:,}"
            if isinstance(now, int)
            else "items or feature values have other ids"
        )
        was = f" with {before.get(name):,}" if isinstance(before.get(name), int) else " on others"
        raise ConfigError(
            f"{dataset.folder}: {what}, the run in {workdir} was trained{was}: the log has changed; put the old one"
            " back, or train in another --workdir"
        )
