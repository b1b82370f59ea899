"""Recompute the metrics of a trained workdir from its best checkpoint.

python -m gr_jax.evaluate --workdir=runs/ml_1m --split=test
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gr_jax import cli
from gr_jax.data.batches.sequences import Split
from gr_jax.training.console import metrics_table, not_beaten_line, repeats_line, say
from gr_jax.training.objective import objective_of
from gr_jax.training.run import open_trained


def main(argv: list[str]) -> int:
    """Print the metrics of the best checkpoint as JSON, and beside it those of the baselines."""
    flags = {
        "workdir": (Path, cli.REQUIRED, "folder of a trained run"),
        "split": (("test", "valid"), "test", "which held-out events"),
        "json": (bool, False, "print JSON alone, without what is told beside it on stderr"),
    }
    args = cli.parse(argv, doc=__doc__, flags=flags, config="none")
    run, params = open_trained(args.workdir)
    objective = objective_of(run)
    result = objective.evaluate(params, args.split)
    say(json.dumps(result, indent=2))
    if not args.json:
        baselines = objective.baselines() if args.split == "test" else {}
        lines = [
            metrics_table({args.split: result, **baselines}, objective.shown),
            not_beaten_line(result, baselines),
            repeats_line(result, args.split),
        ]
        print("\n".join(line for line in lines if line), file=sys.stderr)
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
