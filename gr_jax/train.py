"""Train a recommender: prepare the data if needed, train, validate, save, test the best checkpoint.

    python -m gr_jax.train --config=configs/ml_1m.py --config.data.path=ml-1m
    python -m gr_jax.train --data=clicks.csv --user-column=user --item-column=item --time-column=at

Running it again with the same workdir resumes. Ctrl-C and SIGTERM save and stop. On many hosts the
same command runs on each, with --coordinator=auto under SLURM, or --coordinator=HOST:PORT
--processes=N --process=I (docs/many_hosts.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from pathlib import Path

from gr_jax import cli
from gr_jax.config import Config, ConfigError, DataConfig
from gr_jax.config.overrides import override_all
from gr_jax.errors import shown
from gr_jax.tuning import BUDGET

# What computes is imported by the functions that need it: that takes seconds, after the first line.

FLAGS: dict[str, cli.Flag] = {
    "data": (str, "", "a log, instead of --config: all that a config says is chosen by it"),
    "user_column": (str, "", "of the log of --data; default user_id, or as --init-from had it"),
    "item_column": (str, "", "of the log of --data; default item_id, or as --init-from had it"),
    "time_column": (str, "", "of the log of --data; default timestamp, or as --init-from had it"),
    "init_from": (
        Path,
        None,
        "workdir of an earlier run to begin from; its config holds where no --config is given",
    ),
    "workdir": (Path, None, "folder of the run; default runs/<config>[-<variant>], or runs/<log>"),
    "budget": (
        str,
        BUDGET,
        "with --data: trainings that the search of settings near those chosen may take; 0 = none",
    ),
    "report": (bool, True, "write report.html at the end of one process; --report=false does not"),
    "coordinator": (
        str,
        "",
        "HOST:PORT of process 0; auto = as SLURM or Open MPI says; left out = a single process",
    ),
    "processes": (int, 0, "processes of the job, with --coordinator=HOST:PORT"),
    "process": (int, -1, "number of this one, from 0"),
    "peer_timeout": (
        int,
        60,
        "seconds after which a silent process counts as dead, and the others end",
    ),
}


def main(argv: list[str]) -> int:
    """Train as the command line says; 0 if the run is complete, 128 + signal if interrupted."""
    began = time.monotonic()
    args = cli.parse(argv, doc=__doc__, flags=FLAGS, config="optional")
    given = [bool(x) for x in (args.config, args.data)]
    if sum(given) != 1 and not (args.init_from and sum(given) == 0):
        raise ConfigError("--config=FILE[:variant] or --data=FILE must be given; see --help")
    name = args.config_spec or args.data or str(args.init_from)
    workdir = args.workdir or Path(default_workdir(name))
    if not args.coordinator or args.process == 0:
        print(f"run     {workdir}", flush=True)
    import jax

    from gr_jax.training import processes
    from gr_jax.training.console import say
    from gr_jax.training.train import train
    from gr_jax.tuning.search import search

    processes.join(args.coordinator, args.processes, args.process, args.peer_timeout)
    with processes.exit_all_on_error():
        config = config_of(args, workdir)
        if args.data and args.init_from is None and jax.process_count() == 1:
            budget = trainings(args.budget)
            config, code = search(config, workdir, budget, fixed=tuple(args.overrides))
            if code:
                return code
        code = train(config, workdir)
        if code == 0 and args.report and jax.process_count() == 1:
            say("report  ...")
            from gr_jax.reporting.report import write_after_training

            code = 0 if write_after_training(workdir) else 1
        say(f"{'ended' if code else 'done'}    after {time.monotonic() - began:.0f} s")
        return code


def default_workdir(spec: str) -> str:
    """runs/ml_1m-large for configs/ml_1m.py:large, runs/clicks for data/clicks.csv.gz."""
    file, _, variant = spec.partition(":")
    return f"runs/{Path(file).name.split('.')[0]}" + (f"-{variant}" if variant else "")


def trainings(budget: str) -> float:
    """The number of `--budget=2x`.

    >>> trainings("2x"), trainings("0.5")
    (2.0, 0.5)

    Raises:
      ConfigError: it is none, or negative.
    """
    try:
        number = float(budget.removesuffix("x"))
    except ValueError:
        number = -1
    if not 0 <= number < math.inf:
        raise ConfigError(f"--budget={shown(budget)}: must be a number of trainings, such as 2x")
    return number


def config_of(args: argparse.Namespace, workdir: Path) -> Config:
    """The config of a command line: a file, that of the run to begin from, or what a log asks for.

    Raises:
      ConfigError: there is no such run, or it would begin from itself; or the log cannot be read.
    """
    from gr_jax.training.init_from import continued
    from gr_jax.training.own_log import config_for

    names = ("user_column", "item_column", "time_column")
    log = {name: getattr(args, name) for name in names if getattr(args, name)}
    log |= {"path": args.data} if args.data else {}
    if args.config is not None:
        config = args.config
    elif args.init_from is not None:
        config = continued(args.init_from, workdir, log)
    else:
        config = config_for(DataConfig(**log), workdir)
    config = override_all(config, args.overrides) if args.config is None else config
    if args.init_from is not None:
        begins = dataclasses.replace(config.train, init_from=str(args.init_from))
        config = dataclasses.replace(config, train=begins)
    return config


if __name__ == "__main__":
    cli.run(main)
