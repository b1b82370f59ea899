"""Recompute the metrics of a trained workdir from its best checkpoint, or compare two runs.

    python -m gr_jax.evaluate --workdir=runs/ml_1m --split=test
    python -m gr_jax.evaluate --workdir=runs/ml_1m --at=5,20 --ranks=ranks.parquet
    python -m gr_jax.evaluate --workdir=runs/ml_1m --against=runs/ml_1m-sasrec

The last one reads the ranks of the test that both trainings have left, and asks whether the
difference is more than chance.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from gr_jax import cli
from gr_jax.config import Config, ConfigError
from gr_jax.data.batches.splits import Split
from gr_jax.training.console import cold_line, metrics_table, not_beaten_line, repeats_line, say
from gr_jax.training.objective import objective_of
from gr_jax.training.result import baselines_of
from gr_jax.training.retrieval import rank_file
from gr_jax.training.run import open_trained


def main(argv: list[str]) -> int:
    """Print the metrics of the best checkpoint as JSON, and beside it those of the baselines."""
    flags: dict[str, cli.Flag] = {
        "workdir": (Path, cli.REQUIRED, "folder of a trained run"),
        "split": (("test", "valid"), "test", "which held-out events"),
        "at": (str, "", "K of further metrics, such as 5,20; default evaluate.at of the run"),
        "ranks": (Path, None, "write the rank of each user's item there, a Parquet file"),
        "against": (Path, None, "folder of another run: compare the tests of both, user by user"),
        "json": (bool, False, "print JSON alone, without what is told beside it on stderr"),
    }
    args = cli.parse(argv, doc=__doc__, flags=flags, config="none")
    if args.against is not None:
        if args.split != "test" or args.ranks is not None or args.at:
            raise ConfigError("--against compares the tests of two runs: give --workdir beside it")
        return _compare(args.workdir, args.against, only_json=args.json)

    if args.ranks is not None and not args.ranks.absolute().parent.is_dir():
        raise ConfigError(f"--ranks={args.ranks}: there is no folder {args.ranks.parent}")
    run, params = open_trained(args.workdir)
    if args.at:
        run = dataclasses.replace(run, config=_with_own_k(run.config, args.at))
    objective = objective_of(run)
    result = objective.evaluate(params, args.split, ranks=args.ranks)
    say(json.dumps(result, indent=2))
    if not args.json:
        baselines = baselines_of(objective) if args.split == "test" else {}
        lines = [
            metrics_table({args.split: result, **baselines}, objective.shown),
            not_beaten_line(result, baselines),
            repeats_line(result, args.split),
            cold_line(result, args.split),
        ]
        print("\n".join(line for line in lines if line), file=sys.stderr)
    return 0


def _with_own_k(config: Config, text: str) -> Config:
    """The config with the numbers of --at as `evaluate.at`."""
    try:
        at = tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(f"--at={text}: expected whole numbers such as 5,20") from None
    return dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, at=at))


def _compare(workdir: Path, other: Path, *, only_json: bool) -> int:
    """Print the difference between the tests of two runs, and how likely chance makes it."""
    tables = []
    for folder in (workdir, other):
        path = folder / rank_file.TEST_RANKS
        make = f"python -m gr_jax.evaluate --workdir={folder} --ranks={path}"
        tables.append(rank_file.read(path, remedy=f"make it by {make}"))
    found = rank_file.compare(*tables)
    say(json.dumps(found._asdict(), indent=2))
    if not only_json:
        print(found, file=sys.stderr)
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
