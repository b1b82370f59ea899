"""Retrieval on public data, seed by seed: HSTU against SASRec and popularity, with the significance of the difference.

    python -m experiments.public_retrieval --dataset=beauty --models=hstu,sasrec --seeds=0,1,2 --path=ratings_Beauty.csv
    python -m experiments.public_retrieval --dataset=ml-1m --models=hstu,sasrec,hstu-large --path=ml-1m
    python -m experiments.public_retrieval --dataset=ml-20m --path=ml-20m    # made for a GPU
    python -m experiments.public_retrieval --quick                 # one epoch of each: does it run?

Every run goes to runs/public_retrieval/ and resumes where it stopped; one that has its file in
experiments/results/public_retrieval/ is not repeated. The file DATASET-MODEL-SEED.json holds config, versions, wall
time, the validation curve, and the metrics of both splits by the checkpoint that validation picked; the .npz beside it
the rank of every user's test item, of which the paired test across users is made. Prints the table of all files.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from gr_jax.data import pipeline
from gr_jax.data.popularity import popularity_ranks
from gr_jax.training import metrics
from gr_jax.training.evaluation import UserRanks, make_judge
from gr_jax.training.trained import open_trained

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments/results/public_retrieval"
CONFIGS = {  # dataset -> model -> config file and variant
    "ml-1m": {
        "hstu": "configs/ml_1m.py",
        "hstu-large": "configs/ml_1m.py:large",
        "sasrec": "configs/ml_1m.py:sasrec",
    },
    "beauty": {"hstu": "configs/amazon.py:beauty", "sasrec": "configs/amazon.py:beauty-sasrec"},
    "ml-20m": {
        "hstu": "configs/ml_20m.py",
        "hstu-large": "configs/ml_20m.py:large",
        "sasrec": "configs/ml_20m.py:sasrec",
    },
    "books": {
        "hstu": "configs/amazon.py",
        "hstu-large": "configs/amazon.py:books-large",
        "sasrec": "configs/amazon.py:books-sasrec",
    },
}
SHOWN = ("hr@10", "hr@50", "hr@200", "ndcg@10", "ndcg@200", "mrr", "log_perplexity")


def train(dataset: str, model: str, seed: int, args: argparse.Namespace) -> Path:
    """Runs the command that a reader would, to its end; the folder of the run."""
    workdir = ROOT / f"runs/public_retrieval/{dataset}-{model}-{seed}{'-quick' * args.quick}"
    command = [sys.executable, "-m", "gr_jax.train", f"--config={CONFIGS[dataset][model]}"]
    command += [f"--config.seed={seed}", f"--workdir={workdir}", *args.change]
    command += [f"--config.data.path={Path(args.path).absolute()}"] * bool(args.path)
    command += ["--config.train.epochs=1", "--config.train.validate_every=1"] * args.quick
    subprocess.run(command, check=True, cwd=ROOT)
    return workdir


def outcome(dataset: str, model: str, workdir: Path, change: list[str]) -> tuple[dict, UserRanks, dict]:
    """What a finished run is and reached, the ranks of its test items, and the metrics of popularity."""
    result = json.loads((workdir / "result.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    valid = [line for line in lines if line["split"] == "valid"]
    steps = [line["step_ms"] for line in lines if "step_ms" in line]
    config = json.loads((workdir / "config.json").read_text())
    del result["dataset"]["source"], config["data"]["path"], config["data"]["prepared"]
    run, params = open_trained(workdir)
    rows = pipeline.evaluation_rows(
        run.dataset,
        run.config.data,
        "test",
        run.stream,
        batch_users=run.config.evaluate.batch_users,
        exclude=run.config.evaluate.exclude,
        row_multiple=run.row_multiple,
    )
    judge = make_judge(run.graphdef, run.config, num_items=run.dataset.num_items, mesh=run.mesh)
    ranks = judge(params, rows)
    popular = popularity_ranks(run.dataset.offsets, run.dataset.item, run.dataset.num_items, held_out=1)
    command = f"python -m gr_jax.train --config={CONFIGS[dataset][model]} --config.seed={result['seed']}"
    found = {
        "command": " ".join([command, *change]),
        "hardware": f"{os.cpu_count()} CPU cores, shared with other work",
        **result,
        "last_epoch": valid[-1]["epoch"],
        "median_step_ms": round(statistics.median(steps), 1),
        "validation": [[line["epoch"], round(line["hr@10"], 4), round(line["ndcg@10"], 4)] for line in valid],
        "config": {name: config[name] for name in ("data", "model", "loss", "optimizer", "train", "evaluate")},
    }
    return found, ranks, metrics.rank_means(popular)


def ndcg(rank: np.ndarray, k: int = 10) -> np.ndarray:
    """NDCG@k of each user: 1 / log2(rank + 1) up to rank k."""
    return np.where(rank <= k, 1 / np.log2(rank + 1.0), 0)


def significance(dataset: str, better: str, worse: str) -> dict | None:
    """Paired t-test of NDCG@10 over users, each averaged over the seeds that both models have; None without any."""
    seeds = sorted(set(seeds_of(dataset, better)) & set(seeds_of(dataset, worse)))
    if not seeds:
        return None
    means = [np.mean([ndcg(ranks_of(dataset, m, seed)) for seed in seeds], axis=0) for m in (better, worse)]
    found = stats.ttest_rel(*means)
    gain = float(means[0].mean() / means[1].mean() - 1)
    return {"better": better, "worse": worse, "seeds": seeds, "ndcg@10_gain": gain, "p": float(found.pvalue)}


def ranks_of(dataset: str, model: str, seed: int) -> np.ndarray:
    """Ranks of the test items, by user."""
    with np.load(RESULTS / f"{dataset}-{model}-{seed}.npz") as kept:
        return kept["rank"]


def seeds_of(dataset: str, model: str) -> list[int]:
    """Seeds of which a result is kept."""
    return sorted(int(path.stem.rsplit("-", 1)[1]) for path in RESULTS.glob(f"{dataset}-{model}-[0-9].json"))


def table(dataset: str) -> str:
    """Mean and standard deviation over seeds of each model, and the paired tests of HSTU against SASRec."""
    lines = []
    for model in CONFIGS[dataset]:
        seeds = seeds_of(dataset, model)
        runs = [json.loads((RESULTS / f"{dataset}-{model}-{seed}.json").read_text())["test"] for seed in seeds]
        if runs:
            columns = {name: [run[name] for run in runs] for name in SHOWN}
            spread = lambda values: f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells = [f"{statistics.mean(values):.4f}{spread(values)}" for values in columns.values()]
            lines.append(f"| {dataset} | {model} | {len(seeds)} | {' | '.join(cells)} |")
    head = f"| dataset | model | seeds | {' | '.join(SHOWN)} |"
    found = significance(dataset, "hstu", "sasrec") if "sasrec" in CONFIGS[dataset] else None
    return "\n".join([head, "| --- " * (len(SHOWN) + 3) + "|", *lines, *([json.dumps(found)] if found else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-1m", choices=list(CONFIGS))
    parser.add_argument("--models", default="hstu,sasrec", help="of those that the dataset has a config of")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--path", default="", help="raw log; downloaded when not given")
    parser.add_argument("--quick", action="store_true", help="one epoch and one seed; no results are kept")
    parser.add_argument("change", nargs="*", help="more of the command line of training, after --")
    args = parser.parse_args()
    for seed in [0] if args.quick else [int(seed) for seed in args.seeds.split(",")]:
        for model in args.models.split(","):
            if model not in CONFIGS[args.dataset]:
                parser.error(f"--models: {args.dataset} has {', '.join(CONFIGS[args.dataset])}, not {model}")
            file = RESULTS / f"{args.dataset}-{model}-{seed}.json"
            if file.exists() and not args.quick:
                continue
            workdir = train(args.dataset, model, seed, args)
            found, ranks, popular = outcome(args.dataset, model, workdir, args.change)
            if args.quick:
                print(json.dumps(found["test"]))
                continue
            RESULTS.mkdir(parents=True, exist_ok=True)
            order = np.argsort(ranks.user)
            # The metrics are those of the run; the ranks are made again, and must agree.
            assert abs(float(np.mean(ranks.rank <= 10)) - found["test"]["hr@10"]) < 1e-3, "other ranks than in training"
            np.savez_compressed(file.with_suffix(".npz"), rank=ranks.rank[order].astype(np.int32))
            file.write_text(json.dumps(found | {"popularity": popular}, indent=1) + "\n")
            print(table(args.dataset), flush=True)
    if not args.quick:
        print(table(args.dataset))


if __name__ == "__main__":
    main()
