"""A finished run, opened to be used: its parts and the parameters of its best checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from gr_jax.config import ConfigError, MeshConfig, files
from gr_jax.data import dataset_identity
from gr_jax.training.checkpoint import Checkpoints
from gr_jax.training.run import Run, open_run
from gr_jax.training.tables.admission import catalogue_maker
from gr_jax.training.tables.rowwise import cast_tables


def open_trained(
    workdir: Path, *, prepared: str = "", one_device: bool = False
) -> tuple[Run, dict]:
    """The run in `workdir` and the parameters of its best checkpoint, in float32 also where a table is not.

    Their item table has a row for each item of the catalogue, whatever vocabulary the run has. Where there are fewer
    devices than the run was trained on, all that there are share the work.

    Args:
      workdir: folder of a run with at least one validation.
      prepared: folder of the prepared dataset, where it is not where the run had it.
      one_device: on one device, whatever the mesh of the run was.

    Raises:
      ConfigError: the folder holds no run, or no validated checkpoint, or what it holds is damaged or does not belong
        together.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise ConfigError(
            f"{workdir} holds no run (no config.json): train one with python -m gr_jax.train --workdir={workdir}"
        )
    config = files.read(path)
    if prepared:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, prepared=prepared)
        )
    if one_device:
        config = dataclasses.replace(config, mesh=MeshConfig(data=1, rules=config.mesh.rules))
    elif max(1, config.mesh.data) * config.mesh.model > jax.device_count():
        config = dataclasses.replace(config, mesh=MeshConfig(rules=config.mesh.rules))
    no_checkpoint = ConfigError(
        f"{workdir} has no validated checkpoint yet: train at least until the first validation"
    )
    if not (workdir / "checkpoints").is_dir():  # Orbax would make the folder
        raise no_checkpoint
    run = open_run(config, workdir)
    dataset_identity.check(workdir, run.dataset)
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        progress = checkpoints.newest_progress()
        if progress is None or not progress.best_step:
            raise no_checkpoint
        best = checkpoints.restore(run.planned_state(), step=progress.best_step)
        assert best is not None
        return run, cast_tables(catalogue_maker(run.mesh)(best[0]), "float32")
    finally:
        checkpoints.close()
