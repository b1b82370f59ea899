"""The identity of a dataset: ids of a checkpoint mean the same items only with the same one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from gr_jax.config import ConfigError
from gr_jax.data.dataset import Dataset

DATASET_FILE = "dataset.json"  # in a workdir


def identity(dataset: Dataset) -> dict[str, int | str]:
    """Counts, and a SHA-256 of the meaning of the ids of items and feature values.

    Where the dataset lies does not matter.
    """
    digest = hashlib.sha256()
    for table, names in (
        (dataset.catalogue.items, ("raw",)),
        (dataset.catalogue.features, ("feature", "value")),
    ):
        for part in table.select(names).iter_slices(1 << 17):
            text = "".join(f"{name}\n" for column in names for name in part[column])
            digest.update(text.encode())
    counts = {name: getattr(dataset, name) for name in ("num_users", "num_items", "num_events")}
    return counts | {"ids": digest.hexdigest()}


def check_dataset(workdir: Path, dataset: Dataset) -> None:
    """Check that the run in `workdir` was trained on `dataset`, if its dataset.json is there.

    Raises:
      ConfigError: it was trained on another one, or dataset.json is damaged.
    """
    path = workdir / DATASET_FILE
    if not path.exists():
        return
    try:
        before = dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise ConfigError(
            f"{path}: damaged; delete it if you know that the log has not changed"
        ) from None

    for name, now in identity(dataset).items():
        then = before.get(name)
        if then == now:
            continue
        what, was = "items or feature values have other ids", " on others"
        if isinstance(now, int):
            what = f"{name} is {now:,}"
        if isinstance(then, int):
            was = f" with {then:,}"
        raise ConfigError(
            f"{dataset.folder}: {what}, the run in {workdir} was trained{was}: the log has"
            " changed; put the old one back, or train in another --workdir"
        )
