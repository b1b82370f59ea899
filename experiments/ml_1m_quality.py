"""Quality on MovieLens-1M: trains the variants of configs/ml_1m.py for some seeds and writes what came out.

    python experiments/ml_1m_quality.py --path=ml-1m --variants=base,sasrec --seeds=0,1,2
    python experiments/ml_1m_quality.py --collect=runs/ml_1m,runs/ml_1m-sasrec      # of runs that exist already

About 40 minutes a run on 2 CPU cores. Runs go to runs/quality/ and resume; the summary goes to
experiments/results/ml_1m_quality.json: config, seed, versions, wall time, both splits of the best checkpoint, and the
validation curve.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("hr@10", "hr@50", "hr@200", "ndcg@10", "ndcg@200", "mrr", "log_perplexity")


def collect(workdir: Path) -> dict:
    """The outcome of one finished run."""
    result = json.loads((workdir / "result.json").read_text())
    config = json.loads((workdir / "config.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    valid = [line for line in lines if line["split"] == "valid"]
    train = [line for line in lines if line["split"] == "train" and "step_ms" in line]
    changed = {name: config[name] for name in ("model", "loss", "optimizer", "train", "evaluate")}
    del result["dataset"]["source"]
    return {
        "model": config["model"]["kind"],
        "blocks": config["model"]["num_blocks"],
        "loss": config["loss"]["kind"],
        **result,
        "last_epoch": valid[-1]["epoch"],
        "median_step_ms": statistics.median(line["step_ms"] for line in train),
        "validation": [[line["epoch"], round(line["hr@10"], 4), round(line["ndcg@10"], 4)] for line in valid],
        "config": changed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default="", help="folder of ratings.dat; downloaded when not given")
    parser.add_argument("--variants", default="base,sasrec")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--collect", default="", help="comma-separated workdirs: summarise these, train nothing")
    parser.add_argument("--json", default=str(ROOT / "experiments/results/ml_1m_quality.json"))
    parser.add_argument("--note", default="", help="a remark that belongs to the numbers")
    args = parser.parse_args()
    workdirs = [Path(name) for name in args.collect.split(",") if name]
    if not workdirs:
        for variant in args.variants.split(","):
            for seed in args.seeds.split(","):
                workdirs.append(ROOT / f"runs/quality/ml_1m-{variant}-{seed}")
                command = [sys.executable, "-m", "gr_jax.train", f"--config=configs/ml_1m.py:{variant}"]
                command += [f"--config.seed={seed}", f"--workdir={workdirs[-1]}"]
                command += [f"--config.data.path={Path(args.path).absolute()}"] * bool(args.path)
                subprocess.run(command, check=True, cwd=ROOT)
    runs = [collect(workdir) for workdir in workdirs]
    print("".join(f"{name:>16}" for name in ("model", "seed", "epochs", *SHOWN)))
    for run in runs:
        values = "".join(f"{run['test'][name]:16.4f}" for name in SHOWN)
        print(f"{run['model']:>16}{run['seed']:>16}{run['last_epoch']:>16}{values}")
    summary = {"split": "test of the best validation checkpoint", "note": args.note, "runs": runs}
    Path(args.json).write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
