"""Loss against training FLOPs over sizes and budgets, with a fit and its uncertainty: retrieval and ranking.

    python -m experiments.scaling_law                      # both tasks on the generated log, 3 widths
    python -m experiments.scaling_law --task=retrieval
    python -m experiments.scaling_law --figure             # fits and figure from the results
    python -m experiments.scaling_law --quick              # two small runs; no results are kept

The learning rate is constant, so the validation after epoch e of a run is the result of a budget of e epochs: one run
of each width gives all its budgets. Retrieval: natural log of the perplexity of the next item over the whole catalogue;
ranking: normalised entropy of clicks. FLOPs are those of the mathematics on real tokens (`gr_jax.training.speed`).
The fit is linear in ln C over the frontier, the runs that no other beats with fewer FLOPs, as the paper's figure 7
is; the uncertainty is the standard error of least squares. Runs go to runs/scaling_law/ and resume.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from experiments.figures import pyplot
from gr_jax import config_files
from gr_jax.training.run import open_run
from gr_jax.training.tasks import task_of

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "experiments/results/scaling_law.json"
WIDTHS = (8, 16, 32, 64)
TASKS = {  # task -> config, what is measured on validation, more of the command line
    "retrieval": (
        "configs/synthetic.py",
        "log_perplexity",
        [
            "--config.data.synthetic.num_users=12000",
            "--config.train.epochs=10",
            "--config.optimizer.learning_rate=2e-3",
        ],
    ),
    "ranking": (
        "configs/synthetic.py:ranking",
        "ne/click",
        ["--config.data.synthetic.num_users=12000", "--config.train.epochs=8"],
    ),
}


def train(task: str, width: int, quick: bool) -> Path:
    """Runs one width to its last budget; the folder of the run."""
    config, _, change = TASKS[task]
    workdir = ROOT / f"runs/scaling_law/{task}-{width}{'-quick' * quick}"
    if (workdir / "result.json").exists():
        return workdir
    command = [sys.executable, "-m", "gr_jax.train", f"--config={config}", f"--workdir={workdir}", *change]
    command += [f"--config.model.{name}={width}" for name in ("width", "qk_width", "v_width")]
    command += ["--config.train.validate_every=1", "--config.train.patience=0"]
    command += ["--config.data.synthetic.num_users=500", "--config.train.epochs=2"] * quick
    subprocess.run(command, check=True, cwd=ROOT)
    return workdir


def budgets(task: str, width: int, workdir: Path) -> list[dict]:
    """FLOPs and validation after each epoch of a finished run."""
    metric = TASKS[task][1]
    run = open_run(config_files.read(workdir / "config.json"), workdir)
    batches = task_of(run).batches()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            "task": task,
            "width": width,
            "epoch": line["epoch"],
            "flops": batches.flops_per_step * line["step"],
            "value": line[metric],
        }
        for line in lines
        if line["split"] == "valid"
    ]


def frontier(points: list[dict]) -> list[dict]:
    """The points that no other beats with as few FLOPs, by FLOPs."""
    best, kept = float("inf"), []
    for point in sorted(points, key=lambda p: p["flops"]):
        if point["value"] < best:
            best = point["value"]
            kept.append(point)
    return kept


def fit(points: list[dict]) -> dict:
    """value = a + b ln C by least squares, C in PetaFLOPs, with standard errors and the share of variance explained."""
    x, y = np.log([p["flops"] / 1e15 for p in points]), np.array([p["value"] for p in points])
    (b, a), covariance = np.polyfit(x, y, 1, cov=True)
    residual = y - (a + b * x)
    se_b, se_a = np.sqrt(np.diag(covariance))
    r2 = 1 - residual.var() / y.var()
    return {"a": a, "a_se": se_a, "b": b, "b_se": se_b, "r2": r2, "points": len(points)}


def draw(found: dict, path: Path) -> None:
    """Every budget of every width, the frontier and its fit."""
    names = {"retrieval": "log perplexity of the next item", "ranking": "normalised entropy"}
    tasks = [task for task in TASKS if any(p["task"] == task for p in found["points"])]
    figure, axes = pyplot().subplots(1, len(tasks), figsize=(5 * len(tasks), 4), constrained_layout=True, squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        points = [p for p in found["points"] if p["task"] == task]
        for width in sorted({p["width"] for p in points}):
            of_width = [p for p in points if p["width"] == width]
            axis.plot([p["flops"] for p in of_width], [p["value"] for p in of_width], "o-", label=f"width {width}")
        line = found["fits"][task]
        least, *_, most = (p["flops"] for p in frontier(points))
        flops = np.geomspace(least, most, 50)
        values = line["a"] + line["b"] * np.log(flops / 1e15)
        label = f"{line['a']:.3f} {line['b']:+.4f} (±{line['b_se']:.4f}) ln C"
        axis.plot(flops, values, "k--", label=label)
        axis.set_xscale("log")
        axis.set(xlabel="training FLOPs C", ylabel=f"validation {names[task]}", title=task)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default=",".join(TASKS), help="retrieval, ranking or both")
    parser.add_argument("--quick", action="store_true", help="two small runs; no results are kept")
    parser.add_argument("--figure", action="store_true", help="train nothing: fits and figure of the results")
    args = parser.parse_args()
    found: dict = {"points": [], "fits": {}}
    if RESULT.exists() and not args.quick:
        found = json.loads(RESULT.read_text())
    for task in [] if args.figure else args.task.split(","):
        for width in WIDTHS[:2] if args.quick else WIDTHS:
            points = budgets(task, width, train(task, width, args.quick))
            others = [p for p in found["points"] if (p["task"], p["width"]) != (task, width)]
            found["points"] = [*others, *points]
            print(
                "\n".join(f"{task} width {width}: {p['flops']:.3e} FLOPs {p['value']:.4f}" for p in points), flush=True
            )
    for task in {p["task"] for p in found["points"]}:
        on_frontier = frontier([p for p in found["points"] if p["task"] == task])
        if len(on_frontier) > 3:
            found["fits"][task] = fit(on_frontier)
            print(task, json.dumps(found["fits"][task]))
    if not args.quick:
        made = {"command": " ".join(["python -m experiments.scaling_law", *sys.argv[1:]])}
        made |= {"hardware": f"{os.cpu_count()} CPU cores, shared with other work", "seed": 0}
        RESULT.write_text(json.dumps(made | {"tasks": TASKS} | found, indent=1) + "\n")
        draw(found, RESULT.with_suffix(".png"))


if __name__ == "__main__":
    main()
