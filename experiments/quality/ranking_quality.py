"""Ranking on the last tenth of MovieLens-1M: sequence model, DLRM, counts, constant rate.

    python -m experiments.quality.ranking_quality --path=ml-1m --seeds=0,1,2

Trains the variants of configs/ml_1m.py (runs/ranking/, resumed where they stopped, not repeated
when they are done), each with its own early stopping on the events between .81 and .9 of the log by
time, and tests the best checkpoint once. Writes experiments/results/ranking_quality.json, where
runs of other variants and seeds stay, and prints a table of means and standard deviations over
seeds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from experiments.common.markdown import figure, spread
from experiments.common.results import RESULTS, ROOT, arguments, command_line, keep, metrics_lines
from gr_jax.config import files
from gr_jax.config.overrides import override_all
from gr_jax.data.batches.sequences import time_bounds
from gr_jax.data.log.preparation import prepare
from gr_jax.training.ranking.baselines import baselines

RESULT = RESULTS / "ranking_quality.json"
METRICS = ("ne", "auc", "user_auc", "calibration")
SHOWN = (*(f"{metric}/{task}" for task in ("liked", "loved") for metric in METRICS), "mse/rating")


def outcome(workdir: Path) -> dict:
    """Settings and metrics of a finished run."""
    result = json.loads((workdir / "result.json").read_text())
    config = json.loads((workdir / "config.json").read_text())
    lines = metrics_lines(workdir)
    valid = [line for line in lines if line["split"] == "valid"]
    steps = [line["step_ms"] for line in lines if "step_ms" in line]
    del config["data"]["path"], config["data"]["prepared"]
    return {
        "seed": result["seed"],
        "best_step": result["best_step"],
        "wall_seconds": round(result["wall_seconds"]),
        "median_step_ms": round(statistics.median(steps), 1),
        "test": result["test"],
        "valid": result["valid"],
        "validation": [
            [line["epoch"], round(line["ne/liked"], 4), round(line["ne/loved"], 4)]
            for line in valid
        ],
        "versions": result["versions"],
        "config": {
            name: config[name] for name in ("data", "model", "ranking", "optimizer", "train")
        },
    }


def baselines_of(path: str) -> dict[str, dict[str, float]]:
    """Test metrics of the constant rate, of means, and of a regression on counts of the past."""
    config = files.load(str(ROOT / "configs/ml_1m.py:ranking"))
    config = override_all(config, {"data.path": path} if path else {})
    dataset, ranking = prepare(config.data), config.ranking
    bounds = time_bounds(dataset.events.timestamp, ranking)
    return {
        name: {metric: value for metric, value in values.items() if metric in SHOWN}
        for name, values in baselines(dataset, ranking.tasks, bounds).items()
    }


def table(models: dict[str, list[dict]], others: dict[str, dict[str, float]]) -> str:
    """A markdown table: mean and, from two seeds on, standard deviation of each metric."""
    lines = ["| model | seeds | " + " | ".join(SHOWN) + " |", "| --- " * (len(SHOWN) + 2) + "|"]
    for name, runs in models.items():
        cells = [spread([run["test"][metric] for run in runs]) for metric in SHOWN]
        lines.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    for name, values in others.items():
        cells = [figure(values[metric]) if metric in values else "" for metric in SHOWN]
        lines.append(f"| {name} | - | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--path", default="", help="folder of MovieLens-1M; downloaded when not given"
    )
    parser.add_argument("--variants", default="ranking,ranking-dlrm", help="of configs/ml_1m.py")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--collect", action="store_true", help="train nothing: only the runs that are finished"
    )
    args = parser.parse_args()
    path = str(Path(args.path).absolute()) if args.path else ""
    models: dict[str, list[dict]] = (
        json.loads(RESULT.read_text())["models"] if RESULT.exists() else {}
    )
    for seed in args.seeds.split(","):
        for variant in args.variants.split(","):
            workdir = ROOT / f"runs/ranking/{variant}-{seed}"
            if not (workdir / "result.json").exists() and not args.collect:
                command = [
                    sys.executable,
                    "-m",
                    "gr_jax.train",
                    f"--config=configs/ml_1m.py:{variant}",
                ]
                command += [
                    f"--config.seed={seed}",
                    f"--workdir={workdir}",
                    *[f"--config.data.path={path}"] * bool(path),
                ]
                subprocess.run(command, check=True, cwd=ROOT)
            if (workdir / "result.json").exists():
                others = [run for run in models.get(variant, []) if run["seed"] != int(seed)]
                models[variant] = sorted([*others, outcome(workdir)], key=lambda run: run["seed"])
    rates = baselines_of(path)
    print(table(models, rates))
    said = ["--path=ml-1m" if word.startswith("--path") else word for word in sys.argv[1:]]
    made = {
        "command": command_line(said),
        "split": "test",
    }
    summary = made | {"models": models, "baselines": rates}
    keep(RESULT, summary)


if __name__ == "__main__":
    main()
