"""A run in another folder."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from gr_jax import folders
from gr_jax.config import files
from gr_jax.serving.history import RequestError


def save(workdir: Path, folder: Path) -> None:
    """Copy a workdir, so that `folder` is whole or absent.

    Raises:
      RequestError: `folder` is there already and not empty. ConfigError: it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder} is there already: choose another folder, or delete it")
    before = workdir.absolute()
    try:
        with folders.whole_folder(folder) as building:
            shutil.copytree(
                before, building, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True
            )
            config = files.read(building / "config.json")
            log = Path(config.data.path).absolute()
            if log.is_relative_to(before):  # it goes along
                path = folder.absolute() / log.relative_to(before)
                data = dataclasses.replace(config.data, path=str(path), prepared="")
                files.save(dataclasses.replace(config, data=data), building / "config.json")
    except OSError as error:
        raise folders.unwritable(folder, error) from None
