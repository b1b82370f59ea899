"""Training runs of retrieval, seed by seed, with their results kept as one file each.

A run is a folder of experiments/results, a name and a seed: NAME-SEED.json there holds command,
config, versions, wall time, the validation curve, and the metrics of both splits by the checkpoint
that validation picked; NAME-SEED.npz the rank of every user's test item, of which paired tests
across users are made.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from experiments.common.markdown import spread
from experiments.common.results import RESULTS, ROOT, arguments, by_seed, keep, metrics_lines
from gr_jax.data.batches.evaluation import evaluation_batches
from gr_jax.training.retrieval.evaluation import make_user_ranks
from gr_jax.training.run import open_trained

# On a GPU the trainings run while this process holds on to what it computed their ranks with.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
SHOWN = ("hr@10", "hr@50", "hr@200", "ndcg@10", "ndcg@200", "mrr", "log_perplexity")


def run(
    experiment: str, name: str, seed: int, config: str, change: list[str], args: argparse.Namespace
) -> None:
    """Train by the command that a reader would use, resuming where it stopped; keep the result.

    Args:
      experiment: folder of results.
      name: of the run.
      seed: of the run.
      config: file and variant.
      change: more of the command line.
      args: `quick`: one epoch, nothing is kept; `path`: the raw log.
    """
    file = RESULTS / experiment / f"{name}-{seed}.json"
    said = [f"--config={config}", f"--config.seed={seed}", *change]
    if not args.quick and kept_already(experiment, name, seed, said):
        return
    workdir = ROOT / f"runs/{experiment}/{name}-{seed}{'-quick' * args.quick}"
    command = [sys.executable, "-m", "gr_jax.train", *said, f"--workdir={workdir}"]
    command += [f"--config.data.path={Path(args.path).absolute()}"] * bool(args.path)
    command += ["--config.train.epochs=1", "--config.train.validate_every=1"] * args.quick
    subprocess.run(command, check=True, cwd=ROOT)
    found, rank = outcome(workdir)
    if args.quick:
        print(json.dumps(found["test"]))
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file.with_suffix(".npz"), rank=rank)
    keep(file, {"command": command_of(said)} | found)


def command_of(said: Sequence[str]) -> str:
    """The command of a training, as it is kept: without folders."""
    return " ".join(["python -m gr_jax.train", *said])


def kept_already(experiment: str, name: str, seed: int, said: Sequence[str]) -> bool:
    """True if the result of this training is there.

    Exits with one line where a result of another training has the name of this run: a mean over
    both would be of nothing. The seed may differ, and `data.source`, the format of a
    log is written.
    """
    same = lambda command: [
        x for x in command.split() if not x.startswith(("--config.seed=", "--config.data.source="))
    ]
    runs, command = kept(experiment, name), command_of(said)
    for other, run in runs.items():
        if same(run["command"]) != same(command):
            sys.exit(
                f"{RESULTS / experiment / name}-{other}.json is of `{run['command']}`, not of"
                f" `{command}`: move it away, or train with gr_jax.train in another --workdir"
            )
    if seed in runs:
        print(f"{name}, seed {seed}: kept in experiments/results/{experiment}")
    return seed in runs


def outcome(workdir: Path) -> tuple[dict, np.ndarray]:
    """Settings and metrics of a finished run, and the rank of each user's test item."""
    result = json.loads((workdir / "result.json").read_text())
    lines = metrics_lines(workdir)
    valid = [line for line in lines if line["split"] == "valid"]
    steps = [line["step_ms"] for line in lines if "step_ms" in line]
    config = json.loads((workdir / "config.json").read_text())
    del result["dataset"]["source"], config["data"]["path"], config["data"]["prepared"]
    run, params = open_trained(workdir)
    rows = evaluation_batches(
        run.dataset,
        run.config.data,
        run.config.evaluate,
        "test",
        run.scheme,
        device_multiple=run.mesh.shape["data"],
    )
    found = make_user_ranks(
        run.graphdef, run.config, num_items=run.dataset.num_items, mesh=run.mesh
    )(params, rows)
    rank = np.minimum(found.rank[np.argsort(found.user)], np.iinfo(np.int32).max).astype(np.int32)
    if abs(float(np.mean(rank <= 10)) - result["test"]["hr@10"]) > 1e-3:
        raise RuntimeError(f"{workdir}: the ranks made again are not those that training found")
    return {
        "hardware": hardware(result.pop("device")),
        **result,
        "popularity": result["baselines"]["popularity"],
        "last_epoch": valid[-1]["epoch"],
        "median_step_ms": round(statistics.median(steps), 1),
        "validation": [
            [line[name] for name in ("epoch", "hr@10", "ndcg@10", "log_perplexity")]
            for line in valid
        ],
        "config": {
            name: config[name]
            for name in ("data", "model", "loss", "optimizer", "train", "evaluate")
        },
    }, rank


def hardware(device: str) -> str:
    """Hardware of a training that names this device."""
    if device != "cpu":
        return device
    return f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} CPU cores, shared with other work"


def kept(experiment: str, name: str) -> dict[int, dict]:
    """The results of a run's seeds, by seed."""
    return by_seed(RESULTS / experiment, name)


def ndcg(rank: np.ndarray, k: int = 10) -> np.ndarray:
    """NDCG@k of each user: 1 / log2(rank + 1) up to rank k."""
    return np.where(rank <= k, 1 / np.log2(rank + 1.0), 0)


def significance(experiment: str, better: str, worse: str) -> dict | None:
    """Paired t-test of NDCG@10 over users, each the mean over the seeds that both runs have.

    None if they have no seed in common.
    """
    has_ranks = lambda name: {
        seed
        for seed in kept(experiment, name)
        if (RESULTS / experiment / f"{name}-{seed}.npz").exists()
    }
    seeds = sorted(has_ranks(better) & has_ranks(worse))
    if not seeds:
        return None
    means = []
    for name in (better, worse):
        files = [RESULTS / experiment / f"{name}-{seed}.npz" for seed in seeds]
        means.append(np.mean([ndcg(np.load(file)["rank"]) for file in files], axis=0))
    gain = float(means[0].mean() / means[1].mean() - 1)
    p = float(stats.ttest_rel(*means).pvalue)
    return {"better": better, "worse": worse, "seeds": seeds, "ndcg@10_gain": gain, "p": p}


def table(experiment: str, names: list[str]) -> str:
    """Mean and standard deviation over the seeds of each run."""
    lines = [f"| run | seeds | {' | '.join(SHOWN)} |", "| --- " * (len(SHOWN) + 2) + "|"]
    for name in names:
        if runs := [run["test"] for run in kept(experiment, name).values()]:
            cells = [spread([run[metric] for run in runs]) for metric in SHOWN]
            lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run_variants(
    experiment: str, variants: dict[str, tuple[str, list[str]]], doc: str | None
) -> None:
    """Run every variant (its config, and more of the command line) with every seed."""
    parser = parser_of(doc)
    parser.add_argument("--only", default=",".join(variants), help="of these variants")
    args = parser.parse_args()
    if unknown := set(args.only.split(",")) - set(variants):
        parser.error(f"--only: there are {', '.join(variants)}, not {', '.join(sorted(unknown))}")
    for seed in seeds_of(args):
        for name in args.only.split(","):
            config, change = variants[name]
            run(experiment, name, seed, config, [*change, *args.change], args)
            print(table(experiment, list(variants)), flush=True)


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that all of these experiments have."""
    parser = arguments(doc)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--path", default="", help="raw log; downloaded when not given")
    parser.add_argument(
        "--quick", action="store_true", help="one epoch and one seed; no results are kept"
    )
    parser.add_argument("change", nargs="*", help="more of the command line of training, after --")
    return parser


def seeds_of(args: argparse.Namespace) -> list[int]:
    """The seeds that the command line asks for."""
    return [0] if args.quick else [int(seed) for seed in args.seeds.split(",")]
