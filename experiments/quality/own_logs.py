"""Logs that nobody has tuned for: `gr_jax.train --data=LOG` without a setting, against baselines.

    python -m experiments.quality.own_logs --log=musical-instruments --path=ratings.csv.gz
    python -m experiments.quality.own_logs --log=ml-1m --path=ml-1m/ratings.dat
    python -m experiments.quality.own_logs --table

Each seed is one command, `gr_jax.train --data=.. --config.seed=S [--budget=B]`, whose columns are
named and nothing else. Files of MovieLens, which have no names of columns, are written as CSV
first. Kept for each seed: what was chosen, the metrics of model and baselines, the seconds of the
whole command, and a paired t-test over users of NDCG@10 against the best baseline, which is best on
the test split and so flattered. The runs are in runs/own_logs/.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
from scipy import stats

from experiments.common.results import RESULTS, ROOT, arguments, keep
from experiments.common.retrieval_runs import hardware, ndcg
from experiments.quality.log_tables import own_logs
from gr_jax.data.batches.evaluation import evaluation_batches
from gr_jax.data.batches.splits import training_log
from gr_jax.training.retrieval.baselines import judged
from gr_jax.training.run import open_trained

NAME = "own_logs"
COLUMNS = {"user": "user_id", "item": "item_id", "time": "timestamp"}
CHOSEN = ("model.temperature", "model.dropout", "loss.smoothing", "model.width", "model.num_blocks")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--log", default="", help="name of the log in the table")
    parser.add_argument("--path", default="", help="its file")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budget", default="", help="as of gr_jax.train; its default if left out")
    parser.add_argument("--table", action="store_true", help="print the table of what is kept")
    args = parser.parse_args()
    if not args.table:
        for seed in args.seeds.split(","):
            one(args.log, Path(args.path).absolute(), int(seed), args.budget)
    print(own_logs())


def one(log: str, path: Path, seed: int, budget: str) -> None:
    """Train a seed and keep what came out, unless it is there."""
    file = RESULTS / NAME / f"{log}{f'-budget-{budget}' * bool(budget)}-{seed}.json"
    if file.exists():
        return
    workdir = ROOT / "runs" / NAME / file.stem
    said = [f"--config.seed={seed}", *([f"--budget={budget}"] if budget else [])]
    columns = [f"--{name}-column={column}" for name, column in COLUMNS.items()]
    command = ["-m", "gr_jax.train", f"--data={as_csv(path)}", *columns, *said]
    started = time.monotonic()
    subprocess.run([sys.executable, *command, f"--workdir={workdir}"], check=True, cwd=ROOT)
    seconds = time.monotonic() - started

    result = json.loads((workdir / "result.json").read_text())
    config = json.loads((workdir / "config.json").read_text())
    found = workdir / "search.json"
    ranks = pl.read_parquet(workdir / "test_ranks.parquet")["rank"].fill_null(2**31).to_numpy()
    keep(
        file,
        {
            "command": " ".join(["python", *command[:2], f"--data={path.name}", *columns, *said]),
            "hardware": hardware(result["device"]),
            "seconds": round(seconds, 1),
            "seed": seed,
            "chosen": {name: config[name.split(".")[0]][name.split(".")[1]] for name in CHOSEN},
            "search": json.loads(found.read_text()) if found.exists() else None,
            "best_step": result["best_step"],
            "valid": shown(result["valid"]),
            "test": shown(result["test"]),
            "baselines": {name: shown(of) for name, of in result["baselines"].items()},
            "against": paired(ranks, baseline_ranks(workdir)),
        },
    )


def as_csv(path: Path) -> Path:
    """The log as CSV with a header; a file of MovieLens is written to runs/own_logs/."""
    if path.name not in ("ratings.dat", "u.data"):
        return path
    separator = "::" if path.name == "ratings.dat" else "\t"
    lines = (line.split(separator) for line in path.read_text().splitlines())
    rows = [(user, item, time) for user, item, _, time in lines]
    file = ROOT / "runs" / NAME / f"{path.parent.name}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema=list(COLUMNS.values()), orient="row").write_csv(file)
    return file


def shown(metrics: dict[str, float]) -> dict[str, float]:
    """HR@10 and NDCG@10, with their standard errors."""
    return {name: metrics[name] for name in ("hr@10", "ndcg@10", "hr@10/se", "ndcg@10/se")}


def baseline_ranks(workdir: Path) -> dict[str, np.ndarray]:
    """Rank of every user's test item by each baseline, in the order of the users of the log."""
    run, _ = open_trained(workdir)
    config = run.config
    valid, test = (
        evaluation_batches(run.dataset, config.data, config.evaluate, split, run.scheme)
        for split in ("valid", "test")
    )
    found = judged(training_log(run.dataset, config.evaluate), valid, test)
    order = np.argsort(test.spans.user)
    return {name: of.test[order] for name, of in found.items()}


def paired(ranks: np.ndarray, of_baselines: dict[str, np.ndarray]) -> dict:
    """The model against the baseline that has the highest NDCG@10 on the same test."""
    best = max(of_baselines, key=lambda name: ndcg(of_baselines[name]).mean())
    ours, theirs = ndcg(ranks), ndcg(of_baselines[best])
    return {
        "baseline": best,
        "ratio": float(ours.mean() / theirs.mean()),
        "p": float(stats.ttest_rel(ours, theirs).pvalue),
    }


if __name__ == "__main__":
    main()
