"""A log that is newer than that of a run, for the histories of users as they are now."""

from __future__ import annotations

import dataclasses
import tempfile
import weakref
from pathlib import Path

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.dataset import Dataset
from gr_jax.data.log.preparation import prepare


def newer_log(config: DataConfig, path: str | Path) -> Dataset:
    """The log at `path`, read as the run of `config` read its own; all its users, items and events.

    It is prepared in a temporary folder, which goes when the dataset does: a log that grows every
    day would else leave a dataset a day. Attributes and series of users stay those of the run.

    Raises:
      ConfigError: the log cannot be read, or that of the run was generated.
    """
    if config.source == "synthetic":
        raise ConfigError(f"data={str(path)!r}: the log of this run was generated, not read")
    if not Path(path).expanduser().exists():
        raise ConfigError(f"data={str(path)!r}: no such file")
    folder = tempfile.TemporaryDirectory(prefix="gr_jax-")
    columns = dataclasses.replace(
        config,
        path=str(path),
        prepared=f"{folder.name}/log",
        filter="none",
        user_file="",
        user_features=(),
        item_file="",
        item_features=(),
        series=(),
    )
    dataset = prepare(columns)
    weakref.finalize(dataset, folder.cleanup)
    return dataset
