"""Users a second and memory of the lists of all users (`python -m gr_jax.recommend --users=all`).

    python -m experiments.serving.all_users --workdir=runs/ml_1m   # users/s; results/all_users.json
    python -m experiments.serving.all_users --users=1000000        # memory, on a generated log

Speed: the lists of all users of a run, written by the code of the command, beside the encoder's own
rate, which is that of the packed rows of the same histories, made beforehand. Both in turn, in one
process and after a first time that compiles; the best of five, and the processor time of all
threads, which says more than the clock on a machine that does other work. Neither depends on how
well the model is trained.

Memory: users with 10 events each among 1,000 items, and a model of the sizes that such a log gets,
untrained. The command runs in a process of its own, whose resident memory is read ten times a
second: anonymous, without the pages of files, which the kernel takes back when it needs them. It is
told for each tenth of the users.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

import gr_jax
from experiments.common.results import RESULTS, ROOT, arguments, keep
from gr_jax.config import DataConfig
from gr_jax.config.recipe import LogFacts, choose
from gr_jax.serving import user_lists
from gr_jax.training.checkpoint import Checkpoints, Progress
from gr_jax.training.result import versions
from gr_jax.training.run import open_run
from gr_jax.training.workdir import claim, dataset_to_train_on

RESULT = RESULTS / "all_users.json"
ITEMS, EVENTS = 1000, 10  # of the generated log: the catalogue, and events of a user
TRIES = 5


def speed(workdir: Path, folder: Path) -> dict:
    """Users a second of the encoder alone, and of the whole."""
    model = gr_jax.load(workdir)
    log = model.log_users
    users = np.arange(len(log))
    trained = log._trained
    assert trained is not None
    batches = []

    def keeping(*batch: Any) -> Any:
        batches.append(batch)
        return trained.encode(*batch)

    log._trained = dataclasses.replace(trained, encode=keeping)
    log.vectors(users, log.asked(users, None))
    log._trained = trained

    def encoder() -> None:
        for batch in batches:
            jax.block_until_ready(trained.encode(*batch))

    lists = user_lists.Lists(model.wanted(10), model.id_types, model.version)

    def whole() -> None:
        out = folder / "lists.parquet"
        user_lists.write(log, model.raw_items, lists, out, told=lambda *_: None)

    measured: dict[str, list[tuple[float, float]]] = {"encoder": [], "lists": []}
    for _ in range(1 + TRIES):
        for name, work in (("encoder", encoder), ("lists", whole)):
            start = time.perf_counter(), time.process_time()
            work()
            end = time.perf_counter(), time.process_time()
            measured[name].append((end[0] - start[0], end[1] - start[1]))
    found: dict = {"users": len(users), "items": model.dataset.num_items}
    found["events"] = model.dataset.num_events
    found["tokens_of_rows"] = sum(batch[0].item.size for batch in batches)
    for name, seconds in measured.items():
        wall, processor = (min(values) for values in zip(*seconds[1:], strict=True))
        found[f"{name}_users_per_second"] = round(len(users) / wall)
        found[f"{name}_processor_ms_per_user"] = round(1000 * processor / len(users), 3)
    return found


def memory(users: int, folder: Path) -> dict:
    """Anonymous memory of the command by the share of the users that are done, and its time."""
    rng = np.random.default_rng(0)
    log = pl.DataFrame(
        {
            "user": np.repeat(np.arange(users), EVENTS),
            "item": rng.integers(0, ITEMS, users * EVENTS),
            "time": np.tile(np.arange(EVENTS), users) * 1000 + 1_600_000_000,
        }
    )
    log.write_parquet(folder / "log.parquet")
    del log
    path, prepared, workdir = str(folder / "log.parquet"), str(folder / "made"), folder / "run"
    facts = LogFacts(users, ITEMS, users * EVENTS, long_history=EVENTS, repeats=0.0)
    data = DataConfig(
        source="parquet",
        path=path,
        prepared=prepared,
        user_column="user",
        item_column="item",
        time_column="time",
    )
    config = choose(data, facts).config
    run = open_run(config, workdir, dataset_to_train_on(workdir, config))
    claim(workdir, config, run.dataset)
    checkpoints = Checkpoints(workdir / "checkpoints", writes=True)
    checkpoints.save(1, run.fresh_state()[0], Progress(best_step=1))
    checkpoints.close()

    start = time.monotonic()
    out = folder / "lists.parquet"
    command = ["gr_jax.recommend", f"--workdir={workdir}", "--users=all", f"--out={out}"]
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT)
    parts = folder / "lists.parquet.parts"
    highest: dict[int, int] = {}
    while process.poll() is None:
        done = len(list(parts.glob("0*"))) * user_lists.USERS if parts.is_dir() else 0
        tenth = min(9, 10 * done // users)
        highest[tenth] = max(highest.get(tenth, 0), _anonymous(process.pid))
        time.sleep(0.1)
    assert process.returncode == 0
    seconds = time.monotonic() - start
    return {
        "users": users,
        "seconds": round(seconds, 1),
        "users_per_second": round(users / seconds),
        "anonymous_mib_by_tenth": {tenth: round(kib / 1024) for tenth, kib in highest.items()},
        "file_mib": round(out.stat().st_size / 2**20),
    }


def _anonymous(process: int) -> int:
    """KiB of a process that are no pages of files."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0])
    except (OSError, IndexError):  # it has just ended
        return 0


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--workdir", type=Path, help="a run, to measure users a second")
    parser.add_argument("--users", type=int, help="of a generated log, to measure memory")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    before = json.loads(args.out.read_text()) if args.out.is_file() else {}
    with tempfile.TemporaryDirectory() as name:
        if args.workdir:
            before["speed"] = speed(args.workdir, Path(name))
        if args.users:
            before["memory"] = memory(args.users, Path(name))
    before |= {"device": jax.devices()[0].device_kind, "versions": versions()}
    keep(args.out, before)
    print(before)


if __name__ == "__main__":
    main()
