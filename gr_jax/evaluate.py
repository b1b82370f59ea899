"""Recompute the metrics of a trained workdir from its best checkpoint.

python -m gr_jax.evaluate --workdir=runs/ml_1m --split=test
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gr_jax import cli
from gr_jax.data.batches.sequences import Split
from gr_jax.training.console import repeats_line, say
from gr_jax.training.objective import objective_of
from gr_jax.training.run import open_trained


def main(argv: list[str]) -> int:
    """Print the metrics of the best checkpoint as JSON."""
    flags = {
        "workdir": (Path, cli.REQUIRED, "folder of a trained run"),
        "split": (("test", "valid"), "test", "which held-out events"),
    }
    args = cli.parse(argv, doc=__doc__, flags=flags, config="none")
    result = evaluate(args.workdir, args.split)
    say(json.dumps(result, indent=2))
    if line := repeats_line(result, args.split):
        print(line, file=sys.stderr)  # what is on stdout is JSON
    return 0


def evaluate(workdir: Path, split: Split) -> dict[str, float]:
    """Metrics of the best checkpoint of `workdir` on `split`.

    Raises:
      ConfigError: the folder holds no run, or no validated checkpoint.
    """
    run, params = open_trained(workdir)
    return objective_of(run).evaluate(params, split)


if __name__ == "__main__":
    cli.run(main)
