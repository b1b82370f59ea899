"""Time and memory of preparing a log of MovieLens-20M's format and size. Bar: 60 s and 3 GiB on 2 cores.

    python experiments/prepare_speed.py [--rows=20000000] [--filter=none]

The log is made up (nothing is downloaded): 138,493 users with log-normal history lengths, 26,744 items with
Zipf popularity, rows in the order of the official file (by user, then movie). Prints JSON.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from gr_jax import cli
from gr_jax.config import DataConfig

USERS, ITEMS = 138_493, 26_744


def main(argv: list[str]) -> None:
    """Writes the log, prepares it in a fresh process, and prints what that took."""
    flags: dict[str, cli.Flag] = {
        "rows": (int, 20_000_000, "events in the log"),
        "filter": (str, "none", "as data.filter"),
        "child": (str, "", "prepare this folder and print; used by the script itself"),
    }
    args = cli.parse(argv, doc=__doc__, flags=flags, config="none")
    if args.child:
        prepare_and_print(Path(args.child), args.filter)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder) / "ratings.csv", args.rows)
        command = [sys.executable, __file__, f"--child={folder}", f"--filter={args.filter}"]
        subprocess.run(command, check=True)


def write_log(file: Path, rows: int) -> None:
    """Writes `ratings.csv` as MovieLens-20M has it."""
    rng = np.random.default_rng(0)
    weight = rng.lognormal(0, 1.0, USERS)
    user = np.repeat(np.arange(1, USERS + 1), rng.multinomial(rows, weight / weight.sum()))
    popularity = 1 / np.arange(10, ITEMS + 10)
    item = rng.choice(rng.permutation(131_262)[:ITEMS] + 1, size=rows, p=popularity / popularity.sum())
    order = np.lexsort((item, user))
    columns = {
        "userId": user[order],
        "movieId": item[order],
        "rating": rng.integers(1, 11, rows) / 2,
        "timestamp": rng.integers(789_652_009, 1_427_784_002, rows),
    }
    pl.DataFrame(columns).write_csv(file)


def prepare_and_print(folder: Path, filter: str) -> None:
    """Prepares `folder/ratings.csv` in this process."""
    from gr_jax.data.dataset import prepare

    load, start, cpu = os.getloadavg()[0], time.perf_counter(), time.process_time()
    config = DataConfig(source="ml-20m", path=str(folder), prepared=str(folder / "prepared"), filter=filter)
    dataset = prepare(config)
    result = {
        "rows": dataset.num_events,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "filter": filter,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),  # Linux: KiB
        "csv_mib": round((folder / "ratings.csv").stat().st_size / 2**20),
        "cores": os.cpu_count(),
        "load_before": round(load, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
