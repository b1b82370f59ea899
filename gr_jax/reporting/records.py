"""Files of a run, finished or not: config, metrics and result, read without JAX or the dataset."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gr_jax.config import Config, ConfigError, files
from gr_jax.data.dataset_identity import DATASET_FILE

Json = dict[str, Any]  # an object of metrics.jsonl, result.json or dataset.json
Points = tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]  # steps, values


@dataclass(frozen=True)
class Record:
    """The config, metrics and result of a run."""

    workdir: Path
    name: str  # short, and no other run of the report has it
    config: Config
    lines: tuple[Json, ...]  # of metrics.jsonl
    result: Json | None  # result.json; None = not finished
    # dataset.json: counts of the log
    log: Json = dataclasses.field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of ranking; none for retrieval."""
        return self.config.ranking.tasks

    @functools.cached_property
    def last_step(self) -> int:
        """Newest step in the metrics."""
        return max((line["step"] for line in self.lines), default=0)

    def points(self, split: str, metric: str) -> Points:
        """Steps and values of a metric of a split (train, valid, test), in order."""
        found = [
            (line["step"], line[metric])
            for line in self.lines
            if line["split"] == split and metric in line
        ]
        steps, values = np.array(found, np.float64).reshape(-1, 2).T
        return steps, values

    def last(self, split: str) -> Json:
        """The newest line of a split; empty before the first."""
        return next((line for line in reversed(self.lines) if line["split"] == split), {})

    @property
    def evaluated(self) -> tuple[str, Json]:
        """Split and metrics of the test of a finished run, or of the last validation of another."""
        if self.result is not None:
            return "test", self.result["test"]
        line = self.last("valid")
        return (f"valid at step {line['step']:,}" if line else ""), line


def read(workdirs: Sequence[Path]) -> list[Record]:
    """The records of these folders.

    Raises:
      ConfigError: a folder holds no run, or a damaged one.
    """
    return [_read(workdir, name) for workdir, name in zip(workdirs, names(workdirs), strict=True)]


def names(workdirs: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as distinguish them.

    >>> names([Path("/runs/base/0"), Path("/runs/large/0")])
    ['base/0', 'large/0']
    """
    parts = [workdir.absolute().parts for workdir in workdirs]
    for count in range(1, max(map(len, parts), default=0) + 1):
        short = ["/".join(path[-count:]) for path in parts]
        if len(set(short)) == len(set(parts)):
            return short
    return [str(workdir) for workdir in workdirs]


def _read(workdir: Path, name: str) -> Record:
    if not (workdir / "config.json").is_file():
        raise ConfigError(
            f"{workdir} holds no run (no config.json): give the --workdir of a gr_jax.train"
        )
    config = files.read(workdir / "config.json")
    result, log = (
        _json(path) if path.exists() else None
        for path in (workdir / "result.json", workdir / DATASET_FILE)
    )
    return Record(workdir, name, config, metrics_lines(workdir), result, log or {})


def metrics_lines(workdir: Path) -> tuple[Json, ...]:
    """The objects of a metrics.jsonl, without a line that is still being written or was cut short.

    Empty if there is none.
    """
    path, found = workdir / "metrics.jsonl", []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return tuple(found)


def _json(path: Path) -> Json:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError:
        raise ConfigError(
            f"{path}: damaged; run python -m gr_jax.train again with this workdir"
        ) from None
