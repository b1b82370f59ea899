"""Recomputes the metrics of a trained workdir from its best checkpoint.

python -m gr_jax.evaluate --workdir=runs/ml_1m --split=test
"""

from __future__ import annotations

import json
from pathlib import Path

from gr_jax import cli, config_files
from gr_jax.config import ConfigError
from gr_jax.data.sequences import Split
from gr_jax.training import state
from gr_jax.training.checkpoint import Checkpoints, Progress
from gr_jax.training.reporting import say
from gr_jax.training.run import open_run
from gr_jax.training.tasks import task_of


def main(argv: list[str]) -> int:
    """Prints the metrics of the best checkpoint as JSON."""
    flags = {
        "workdir": (Path, cli.REQUIRED, "folder of a trained run"),
        "split": (("test", "valid"), "test", "which held-out events"),
    }
    args = cli.parse(argv, doc=__doc__, flags=flags, config="none")
    say(json.dumps(evaluate(args.workdir, args.split), indent=2))
    return 0


def evaluate(workdir: Path, split: Split) -> dict[str, float]:
    """Metrics of the best checkpoint of `workdir` on `split`.

    Raises:
      ConfigError: the folder holds no run, or no validated checkpoint.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise ConfigError(
            f"{workdir} holds no run (no config.json): train one with python -m gr_jax.train --workdir={workdir}"
        )
    run = open_run(config_files.read(path), workdir)
    target = state.abstract(run.fresh_state()[0])
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        newest = checkpoints.restore(target)
        progress = newest[1] if newest else Progress()
        if not progress.best_step:
            raise ConfigError(f"{workdir} has no validated checkpoint yet: train at least until the first validation")
        best = checkpoints.restore(target, step=progress.best_step)
        assert best is not None
        return task_of(run).evaluate(best[0].params, split)
    finally:
        checkpoints.close()


if __name__ == "__main__":
    cli.run(main)
