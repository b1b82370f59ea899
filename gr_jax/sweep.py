"""Search the best settings of a config by many trainings, judged by validation.

    python -m gr_jax.sweep --config=configs/ml_1m.py --trials=20 \\
        --search model.width=32,64,128 optimizer.learning_rate=1e-4:1e-2:log
    python -m gr_jax.sweep --data=clicks.csv --user-column=user --search model.dropout=0:0.6

Each trial is a run in WORKDIR/trial-N. One that is below the median of the others at the same epoch
is ended early. The same command goes on where it stopped, with more trials if --trials is larger,
and several processes may run it at once. At the end the best trial is evaluated on the test split,
which no other trial is, and WORKDIR/best.py is its config.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gr_jax import cli
from gr_jax.config import Config, ConfigError, DataConfig, files
from gr_jax.config.overrides import override_all
from gr_jax.files import write_whole
from gr_jax.training.console import say
from gr_jax.training.own_log import config_for
from gr_jax.training.train import train
from gr_jax.training.workdir import flatten
from gr_jax.tuning import outcome, trials
from gr_jax.tuning.space import parse

FLAGS: dict[str, cli.Flag] = {
    "search": ([str], cli.REQUIRED, "FIELD=A,B,C or FIELD=LOW:HIGH[:log]; give several"),
    "trials": (int, 20, "trainings in all, over all processes and sessions"),
    "data": (str, "", "a log, instead of --config, as of gr_jax.train"),
    "user_column": (str, "user_id", "of the log of --data"),
    "item_column": (str, "item_id", "of the log of --data"),
    "time_column": (str, "timestamp", "of the log of --data"),
    "workdir": (Path, None, "folder of the sweep; default sweeps/<config> or sweeps/<log>"),
}
ABOUT = "sweep.json"  # in the workdir: what is searched


def main(argv: list[str]) -> int:
    """Run the trials; 0 if all are done, 128 + signal if interrupted."""
    args = cli.parse(argv, doc=__doc__, flags=FLAGS, config="optional")
    if (args.config is None) == (not args.data):
        raise ConfigError("--config=FILE[:variant] or --data=FILE must be given; see --help")
    if args.trials < 1:
        raise ConfigError(f"--trials={args.trials}: must be at least 1")
    name = Path((args.config_spec or args.data).partition(":")[0]).name.split(".")[0]
    folder = args.workdir or Path("sweeps") / name
    folder.mkdir(parents=True, exist_ok=True)
    study = trials.open_study(folder)
    config = _config(args, folder)
    if config.train.mode == "streaming":
        raise ConfigError("config.train.mode=streaming: no validation says which stream is better")
    sweep = trials.Sweep(folder, config, parse(args.search, config), study)

    code = trials.run_all(sweep, args.trials)
    if code:
        return code
    say(outcome.table_of(sweep))
    if running := trials.count_running(sweep):
        say(f"{running} trials are still running in other processes; the last one ends the sweep")
        return 0
    return _end(sweep)


def _config(args: argparse.Namespace, folder: Path) -> Config:
    """The config that all trials begin with: that of the sweep, if it has begun.

    Raises:
      ConfigError: the folder holds another sweep.
    """
    file, search = folder / ABOUT, sorted(args.search)
    before = json.loads(file.read_text()) if file.is_file() else None
    if before is not None and before["search"] != search:
        told = " ".join(before["search"])
        raise ConfigError(f"{folder} holds a sweep of {told}: choose another --workdir")
    if args.config is None and before is not None:
        config = files.from_dict(before["config"])
    elif args.config is None:
        columns = {name: getattr(args, f"{name}") for name in FLAGS if name.endswith("_column")}
        config = config_for(DataConfig(path=args.data, **columns), folder)
    else:
        config = args.config
    if args.config is None:
        config = override_all(config, args.overrides)
    about = {"search": search, "config": files.to_dict(config)}
    if before is not None:
        then, now = (flatten(part["config"]) for part in (before, json.loads(json.dumps(about))))
        for field, value in now.items():
            if (was := then.get(field)) != value:
                raise ConfigError(
                    f"{folder} holds a sweep with config.{field}={was!r}, not {value!r}: choose"
                    " another --workdir"
                )
    write_whole(file, json.dumps(about, indent=2) + "\n")
    return config


def _end(sweep: trials.Sweep) -> int:
    """Test the best trial, and write its config and the picture; the exit code."""
    best = trials.best(sweep)
    config = override_all(sweep.config, best.settings)
    chosen = sweep.folder / "best.py"
    shown = " ".join(f"{field}={text}" for field, text in best.settings.items())
    write_whole(chosen, files.to_python(config, f"The best of a sweep: {shown}."))
    say(f"best    trial {best.number}, {shown}; its config is in {chosen}")
    if picture := outcome.draw(sweep):
        say(f"picture {picture}")
    return train(config, sweep.workdir(best.number))


if __name__ == "__main__":
    cli.run(main)
