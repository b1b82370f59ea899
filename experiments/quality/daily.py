"""Day by day: training that goes on from yesterday's run, against training from scratch.

    python -m experiments.quality.daily --path=ml-1m                 # hours: all users, 3 seeds
    python -m experiments.quality.daily --path=ml-1m --users=600 --days=3 --seeds=0 \\
        -- --config.train.epochs=40 --config.train.batch_users=32    # minutes a day
    python -m experiments.quality.daily --log=beauty --path=ratings.csv.gz

The last fifth of the events, in the order of time, is cut into days of equally many. The run of the
day before the first is trained from scratch; then each day's log, which is all up to its end, is
trained once from scratch and once with `--init-from` the continued run of the day before, with the
same settings. Both are judged leave-one-out on the log of that day. Beauty has many new items a
day, MovieLens-1M few.

Seconds are those of training and validation, until patience or the last epoch, whatever that is.
What is done is kept, and a script that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import polars as pl

from experiments.common.results import RESULTS, ROOT, arguments, command_line, keep
from experiments.common.retrieval_runs import hardware, ndcg, outcome
from gr_jax.training.checkpoint import Checkpoints

CONFIGS = {"ml-1m": "configs/ml_1m.py", "beauty": "configs/amazon.py:beauty"}


def events_of(path: Path) -> pl.DataFrame:
    """user_id, item_id and timestamp, in the order of the file."""
    if path.is_dir():
        lines = (path / "ratings.dat").read_text(encoding="latin-1").splitlines()
        cells = np.array([line.split("::") for line in lines], np.int64)
        return pl.DataFrame(
            {"user_id": cells[:, 0], "item_id": cells[:, 1], "timestamp": cells[:, 3]}
        )
    return pl.read_csv(path).select("user_id", "item_id", "timestamp")


def write_days(events: pl.DataFrame, folder: Path, days: int) -> list[Path]:
    """The logs of days 0 (the first four fifths) to `days`, each with all that came before."""
    folder.mkdir(parents=True, exist_ok=True)
    times, files = np.sort(events["timestamp"].to_numpy()), []
    for day in range(days + 1):
        last = times[int(len(times) * (0.8 + 0.2 * day / days)) - 1]
        files.append(folder / f"day{day}.csv")
        if not files[-1].exists():
            events.filter(pl.col("timestamp") <= last).write_csv(files[-1])
    return files


def train(args: argparse.Namespace, seed: int, log: Path, name: str, begin: Path | None) -> Path:
    """Train on the log of a day, from scratch or from the run in `begin`; the workdir."""
    workdir = log.parent / f"{name}-{seed}"
    command = [sys.executable, "-m", "gr_jax.train", f"--config={CONFIGS[args.log]}"]
    command += ["--config.data.source=csv", f"--config.data.path={log}", f"--workdir={workdir}"]
    command += ["--config.data.filter=none", f"--config.seed={seed}", "--report=false"]
    command += [*args.change, *([f"--init-from={begin}", *args.continued.split()] if begin else [])]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return workdir


def measure(workdir: Path) -> tuple[dict, np.ndarray]:
    """Quality and cost of a run, and NDCG@10 of each of its users."""
    found, rank = outcome(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        progress, steps = checkpoints.newest_progress(), checkpoints.newest_step()
    finally:
        checkpoints.close()
    assert progress is not None
    gains = ndcg(rank)
    known = json.loads((workdir / "result.json").read_text()).get("init_from", {})
    return {
        "ndcg@10": float(gains.mean()),
        "se": float(gains.std() / np.sqrt(len(gains))),
        "seconds": round(progress.wall_seconds, 1),
        "steps": steps,
        "best_step": progress.best_step,
        "first_valid": found["validation"][0][2],
        "best_baseline": max(b["ndcg@10"] for b in found["baselines"].values()),
        **known.get("items", {}),
    }, gains


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--log", choices=CONFIGS, default="ml-1m")
    parser.add_argument("--path", type=Path, required=True, help="the raw log")
    parser.add_argument("--days", type=int, default=4)
    parser.add_argument("--users", type=int, default=0, help="a sample of this many; 0 = all")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--continued", default="", help="settings of the continued runs alone")
    parser.add_argument("--name", default="", help="of the results; default that of the log")
    parser.add_argument("change", nargs="*", help="more of the command line of training, after --")
    args = parser.parse_args()
    events, name = events_of(args.path), args.name or args.log
    if args.users:
        users = events["user_id"].unique().sort().sample(args.users, seed=0)
        events = events.filter(pl.col("user_id").is_in(users.implode()))
    logs = write_days(events, ROOT / "runs" / "daily" / name, args.days)
    for seed in map(int, args.seeds.split(",")):
        file = RESULTS / "daily" / f"{name}-{seed}.json"
        kept = json.loads(file.read_text())["days"] if file.exists() else []
        before = train(args, seed, logs[0], "day0", None)
        for day in range(1, args.days + 1):
            scratch = train(args, seed, logs[day], f"day{day}-scratch", None)
            continued = train(args, seed, logs[day], f"day{day}-continued", before)
            before = continued
            if len(kept) >= day:
                continue
            (ours, a), (theirs, b) = measure(continued), measure(scratch)
            gain = {"ndcg@10": float((a - b).mean()), "se": float((a - b).std() / len(a) ** 0.5)}
            kept.append({"day": day, "continued": ours, "scratch": theirs, "gain": gain})
            print(json.dumps(kept[-1], indent=1), flush=True)
            about = {"command": command_line(), "hardware": hardware(jax.devices()[0].device_kind)}
            keep(file, about | {"days": kept})


if __name__ == "__main__":
    main()
