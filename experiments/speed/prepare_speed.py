"""Time and memory of preparing a log of MovieLens-20M's size. Bar: 60 s and 3 GiB on 2 cores.

    python -m experiments.speed.prepare_speed [--rows=20000000] [--filter=none]
    python -m experiments.speed.prepare_speed --ml-1m=FOLDER --runner=both --json=FILE

The log is made up (nothing is downloaded): 138,493 users with log-normal history lengths, 26,744
items with Zipf popularity, rows in the order of the official file (by user, then movie). Prints
JSON. With --runner=both polars and Apache Beam, in one process, prepare the same log, each in a
process of its own, and their files are compared.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from experiments.common.results import command_line, in_own_process
from gr_jax import cli
from gr_jax.config import DataConfig

USERS, ITEMS = 138_493, 26_744


def main(argv: list[str]) -> None:
    """Writes the log, prepares it in a fresh process per runner, and prints what that took."""
    flags: dict[str, cli.Flag] = {
        "rows": (int, 20_000_000, "events in the log"),
        "ml-1m": (str, "", "folder of MovieLens-1M, to prepare that instead"),
        "filter": (str, "none", "as data.filter"),
        "runner": (("polars", "beam", "both"), "polars", "what prepares it"),
        "json": (Path, None, "write the result here too"),
        "child": (str, "", "prepare into this folder and print; used by the script itself"),
    }
    flags = {name.replace("-", "_"): flag for name, flag in flags.items()}
    args = cli.parse(argv, doc=__doc__, flags=flags, config="none")
    if args.child:
        prepare_and_print(Path(args.child), args.filter, args.ml_1m, args.runner)
        return
    runners = ("polars", "beam") if args.runner == "both" else (args.runner,)
    with tempfile.TemporaryDirectory() as folder:
        if not args.ml_1m:
            write_log(Path(folder) / "ratings.csv", args.rows)
        result = {}
        for runner in runners:
            given = (f"--runner={runner}", f"--filter={args.filter}", f"--ml-1m={args.ml_1m}")
            result[runner] = in_own_process(f"--child={folder}", *given)
        if len(runners) > 1:
            result["same_bytes"] = contents(Path(folder) / "polars") == contents(
                Path(folder) / "beam"
            )
    shown = [word for word in argv if not word.startswith("--ml")] + ["--ml-1m=FOLDER"] * bool(
        args.ml_1m
    )
    text = json.dumps(
        {"command": command_line(shown), **result},
        indent=2,
    )
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a dataset."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def write_log(file: Path, rows: int) -> None:
    """Writes `ratings.csv` as MovieLens-20M has it."""
    rng = np.random.default_rng(0)
    weight = rng.lognormal(0, 1.0, USERS)
    user = np.repeat(np.arange(1, USERS + 1), rng.multinomial(rows, weight / weight.sum()))
    popularity = 1 / np.arange(10, ITEMS + 10)
    item = rng.choice(
        rng.permutation(131_262)[:ITEMS] + 1, size=rows, p=popularity / popularity.sum()
    )
    order = np.lexsort((item, user))
    columns = {
        "userId": user[order],
        "movieId": item[order],
        "rating": rng.integers(1, 11, rows) / 2,
        "timestamp": rng.integers(789_652_009, 1_427_784_002, rows),
    }
    pl.DataFrame(columns).write_csv(file)


def prepare_and_print(folder: Path, filter: str, ml_1m: str, runner: str) -> None:
    """Prepares `folder/ratings.csv`, or MovieLens-1M, in this process."""
    from gr_jax.data.beam import build
    from gr_jax.data.log.preparation import prepare

    source, path = ("ml-1m", ml_1m) if ml_1m else ("ml-20m", str(folder))
    load, start, cpu = os.getloadavg()[0], time.perf_counter(), time.process_time()
    config = DataConfig(source=source, path=path, prepared=str(folder / runner), filter=filter)
    dataset = prepare(config, build=build.build if runner == "beam" else None)
    raw = Path(ml_1m) / "ratings.dat" if ml_1m else folder / "ratings.csv"
    result = {
        "rows": dataset.num_events,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "filter": filter,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_rss_gib": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
        ),  # Linux: KiB
        "log_mib": round(raw.stat().st_size / 2**20),
        "cores": os.cpu_count(),
        "load_before": round(load, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
