"""The dataset of a run, kept in its workdir: the run is usable whatever becomes of the log."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.dataset import Dataset, copy_to, open_dataset
from gr_jax.data.dataset_identity import check_dataset
from gr_jax.data.log import formats, provenance
from gr_jax.data.log.preparation import prepare

FOLDER = "dataset"  # in a workdir


def is_kept(workdir: Path) -> bool:
    """True if the run there has its own dataset."""
    return (workdir / FOLDER / "meta.json").is_file()


def dataset_of(workdir: Path, config: DataConfig) -> Dataset:
    """The dataset of a run that has begun.

    Raises:
      ConfigError: it is damaged; or the run is from before runs kept theirs, and the log is gone or
        has changed.
    """
    if is_kept(workdir):
        dataset = open_dataset(workdir / FOLDER)
    else:
        try:
            dataset = prepare(config)
        except ConfigError as error:
            raise ConfigError(
                f"{workdir / FOLDER}: no dataset there, and none from the log ({error})"
            ) from None
    check_dataset(workdir, dataset)
    return dataset


def keep(workdir: Path, config: DataConfig, *, has_begun: bool) -> Dataset:
    """The dataset to train on: put into the workdir at the start, the same when the run resumes.

    Args:
      workdir: of the run.
      config: which log, and how it is prepared.
      has_begun: True if the run has logged or saved something.

    Raises:
      ConfigError: the log cannot be prepared, or is not the one that the run began with.
    """
    if has_begun and is_kept(workdir):
        dataset = dataset_of(workdir, config)
        _check_log(workdir, config, dataset)
        return dataset
    dataset = prepare(config, progress=True)
    if has_begun:
        check_dataset(workdir, dataset)
    else:  # what is there is of a start that came to nothing
        shutil.rmtree(workdir / FOLDER, ignore_errors=True)
    return copy_to(dataset, workdir / FOLDER)


def _check_log(workdir: Path, config: DataConfig, dataset: Dataset) -> None:
    """Check that the log, if it is there at all, is still that of `dataset`."""
    raw = formats.find(config)
    if raw is not None and not raw.files:
        print(f"data    the log is not there any more: going on with {dataset.folder}", flush=True)
        return
    made_from = provenance.made_from(config, raw.files if raw else ())
    if provenance.fingerprint(made_from) == dataset.meta.get("fingerprint"):
        return
    try:
        now = prepare(dataclasses.replace(config, prepared=""), progress=True)
        if now.hash == dataset.hash:  # other files with the same contents
            return
        what = f"{now.num_events:,} events, were {dataset.num_events:,}"
    except ConfigError as error:
        what = str(error)
    raise ConfigError(
        f"the log has changed since the run in {workdir} began ({what}): train on it in another"
        " --workdir; the run that is there stays usable as it is"
    )
