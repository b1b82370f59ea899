"""Loss of retrieval and ranking against training FLOPs, with a fit and its uncertainty.

    python -m experiments.scale.scaling_law  # both tasks on the generated log, 4 widths
    # retrieval on MovieLens-1M, 4 widths
    python -m experiments.scale.scaling_law --task=ml-1m --path=ml-1m
    python -m experiments.scale.scaling_law --figure             # fits and figure from the results
    python -m experiments.scale.scaling_law --quick  # two small runs; no results are kept

The learning rate is constant, so the validation after epoch e of a run is the result of a budget of
e epochs: one run of each width gives all its budgets. Retrieval: natural log of the perplexity of
the next item over the whole catalogue; ranking: normalised entropy of clicks. FLOPs are those of
the mathematics on real tokens (`gr_jax.models.flops`). The fit is L = l + k C^-b over the frontier,
the runs that no other beats with fewer FLOPs, from the third epoch on: before that a run has hardly
begun to learn, whatever its width. Uncertainties are standard errors of least squares. The paper's
figure 7 is linear in ln C, far from the end of what its log has to give; these budgets are not, so
l is needed. Runs go to runs/scaling_law/ and resume.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import optimize

from experiments.common.figures import pyplot
from experiments.common.results import RESULTS, ROOT, arguments, keep, metrics_lines
from gr_jax.config import files
from gr_jax.data.run_dataset import dataset_of
from gr_jax.training.objective import objective_of
from gr_jax.training.run import open_run

RESULT = RESULTS / "scaling_law.json"
SKIPPED = 2  # epochs of each run that the fit leaves out
TASKS = {  # task -> config, widths, what is measured on validation, more of the command line
    "retrieval": (
        "configs/synthetic.py",
        (8, 16, 32, 64),
        "log_perplexity",
        [
            "--config.data.synthetic.num_users=12000",
            "--config.train.epochs=10",
            "--config.optimizer.learning_rate=2e-3",
        ],
    ),
    "ranking": (
        "configs/synthetic.py:ranking",
        (8, 16, 32, 64),
        "ne/click",
        ["--config.data.synthetic.num_users=12000", "--config.train.epochs=8"],
    ),
    "ml-1m": (
        "configs/ml_1m.py",
        (12, 25, 50, 100),
        "log_perplexity",
        ["--config.train.epochs=20"],
    ),
}


def train(task: str, width: int, quick: bool, path: str) -> Path:
    """Runs one width to its last budget; the folder of the run."""
    config, _, _, change = TASKS[task]
    workdir = ROOT / f"runs/scaling_law/{task}-{width}{'-quick' * quick}"
    if (workdir / "result.json").exists():
        return workdir
    command = [
        sys.executable,
        "-m",
        "gr_jax.train",
        f"--config={config}",
        f"--workdir={workdir}",
        *change,
    ]
    command += [f"--config.model.{name}={width}" for name in ("width", "qk_width", "v_width")]
    command += ["--config.train.validate_every=1", "--config.train.patience=0"]
    command += [f"--config.data.path={Path(path).absolute()}"] * bool(path)
    command += ["--config.data.synthetic.num_users=500", "--config.train.epochs=2"] * quick
    subprocess.run(command, check=True, cwd=ROOT)
    return workdir


def budgets(task: str, width: int, workdir: Path) -> list[dict]:
    """FLOPs and validation after each epoch of a finished run."""
    metric = TASKS[task][2]
    config = files.read(workdir / "config.json")
    run = open_run(config, workdir, dataset_of(workdir, config.data))
    cost = objective_of(run).cost
    lines = metrics_lines(workdir)
    return [
        {
            "task": task,
            "width": width,
            "epoch": line["epoch"],
            "flops": cost.flops * line["step"],
            "value": line[metric],
        }
        for line in lines
        if line["split"] == "valid"
    ]


def frontier(points: list[dict]) -> list[dict]:
    """Points that no other beats with fewer FLOPs, by FLOPs."""
    best, kept = float("inf"), []
    for point in sorted(points, key=lambda p: p["flops"]):
        if point["value"] < best:
            best = point["value"]
            kept.append(point)
    return kept


def law(flops: np.ndarray, least: float, k: float, b: float) -> np.ndarray:
    """least + k C^-b, C in PetaFLOPs."""
    return least + k * (flops / 1e15) ** -b


def fit(points: list[dict]) -> dict:
    """`law` fitted by least squares: parameters, standard errors, share of variance explained."""
    x, y = (np.array([p[name] for p in points]) for name in ("flops", "value"))
    start = (0.9 * y.min(), (y[0] - 0.9 * y.min()) * (x[0] / 1e15) ** 0.5, 0.5)
    found, covariance = optimize.curve_fit(law, x, y, p0=start, bounds=(0, (y.min(), np.inf, 5)))
    errors = np.sqrt(np.diag(covariance))
    names = ("least", "k", "b")
    values = dict(zip(names, map(float, found), strict=True))
    values |= {f"{name}_se": float(error) for name, error in zip(names, errors, strict=True)}
    return values | {"r2": float(1 - (y - law(x, *found)).var() / y.var()), "points": len(points)}


def draw(found: dict, path: Path) -> None:
    """Every budget of every width, the frontier and its fit."""
    perplexity = "log perplexity of the next item"
    names = {"retrieval": perplexity, "ranking": "normalised entropy", "ml-1m": perplexity}
    tasks = [task for task in TASKS if any(p["task"] == task for p in found["points"])]
    figure, axes = pyplot().subplots(
        1, len(tasks), figsize=(5 * len(tasks), 4), constrained_layout=True, squeeze=False
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        points = [p for p in found["points"] if p["task"] == task and p["epoch"] > SKIPPED]
        for width in sorted({p["width"] for p in points}):
            of_width = [p for p in points if p["width"] == width]
            axis.plot(
                [p["flops"] for p in of_width],
                [p["value"] for p in of_width],
                "o-",
                label=f"width {width}",
            )
        line = found["fits"][task]
        least, *_, most = (p["flops"] for p in frontier(points))
        flops = np.geomspace(least, most, 50)
        label = f"{line['least']:.2f} (±{line['least_se']:.2f})"
        label += f" + k C^-{line['b']:.2f} (±{line['b_se']:.2f})"
        axis.plot(flops, law(flops, line["least"], line["k"], line["b"]), "k--", label=label)
        axis.set_xscale("log")
        axis.set(xlabel="training FLOPs C", ylabel=f"validation {names[task]}", title=task)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--task", default="retrieval,ranking", help=f"some of {','.join(TASKS)}")
    parser.add_argument("--path", default="", help="raw log of ml-1m; downloaded when not given")
    parser.add_argument("--quick", action="store_true", help="two small runs; no results are kept")
    parser.add_argument(
        "--figure", action="store_true", help="train nothing: fits and figure of the results"
    )
    args = parser.parse_args()
    found: dict = {"points": [], "fits": {}}
    if RESULT.exists() and not args.quick:
        found = json.loads(RESULT.read_text())
    for task in [] if args.figure else args.task.split(","):
        widths = TASKS[task][1]
        for width in widths[:2] if args.quick else widths:
            points = budgets(task, width, train(task, width, args.quick, args.path))
            others = [p for p in found["points"] if (p["task"], p["width"]) != (task, width)]
            found["points"] = [*others, *points]
            print(
                "\n".join(
                    f"{task} width {width}: {p['flops']:.3e} FLOPs {p['value']:.4f}" for p in points
                ),
                flush=True,
            )
    for task in sorted({p["task"] for p in found["points"]}):
        on_frontier = frontier(
            [p for p in found["points"] if p["task"] == task and p["epoch"] > SKIPPED]
        )
        if len(on_frontier) > 3:
            found["fits"][task] = fit(on_frontier)
            print(task, json.dumps(found["fits"][task]))
    if not args.quick:
        made = {
            "command": f"python -m experiments.scale.scaling_law --task={','.join(found['fits'])}"
        }
        made |= {"hardware": f"{os.cpu_count()} CPU cores, shared with other work", "seed": 0}
        keep(RESULT, made | {"tasks": TASKS} | found)
        draw(found, RESULT.with_suffix(".png"))


if __name__ == "__main__":
    main()
