"""The config of a run that was given a log and no config: that of `config.recipe`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from gr_jax.config import Config, DataConfig, files
from gr_jax.config.recipe import LogFacts, choose
from gr_jax.data.dataset import Dataset
from gr_jax.data.log import detect
from gr_jax.data.log.preparation import prepare
from gr_jax.files import write_whole
from gr_jax.training import processes
from gr_jax.training.console import say
from gr_jax.training.workdir import has_begun

CHOSEN = "chosen.py"  # in a workdir: the config to edit


def config_for(data: DataConfig, workdir: Path) -> Config:
    """The config for a log: that of the run in `workdir` if it has begun, else chosen and told.

    The choice is written to `workdir/chosen.py`, to be edited and trained elsewhere.

    Args:
      data: the path of the log and its columns.

    Raises:
      ConfigError: the log cannot be read.
    """
    if has_begun(workdir):
        config = files.read(workdir / "config.json")
        # This log and no other: if it is not that of the run, the training says so.
        return dataclasses.replace(config, data=dataclasses.replace(config.data, path=data.path))
    data = detect.described(data)
    dataset = processes.first_then_others(lambda: prepare(data, progress=processes.is_first()))
    config, reasons = choose(data, facts(dataset))
    processes.on_first(lambda: write_chosen(config, workdir, "\n".join(reasons)))
    say("\n".join(f"chosen  {line}" for line in (*reasons, f"in {workdir / CHOSEN}, to be edited")))
    return config


def write_chosen(config: Config, workdir: Path, reasons: str) -> None:
    """Write `workdir/chosen.py`, a config file to be edited."""
    text = files.to_python(
        config,
        f"Chosen for {Path(config.data.path).name}.\n\n{reasons}\n\n"
        "Edit it, then: python -m gr_jax.train --config=FILE --workdir=ANOTHER\n",
    )
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(workdir / CHOSEN, text)


def facts(dataset: Dataset) -> LogFacts:
    """What the rules of the recipe look at."""
    events = dataset.events
    user = np.repeat(np.arange(dataset.num_users), events.lengths)
    pairs = len(np.unique(user * (dataset.num_items + 1) + events.item))
    return LogFacts(
        users=dataset.num_users,
        items=dataset.num_items,
        events=dataset.num_events,
        long_history=int(np.percentile(events.lengths, 95)),
        repeats=1 - pairs / dataset.num_events,
    )
