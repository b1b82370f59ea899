"""Losses of five configs trained from two checkouts: does a change of the code change training?

    python -m experiments.faults.drift --before=DIR --after=DIR --data=FOLDER
    python -m experiments.faults.drift --before=DIR --after=DIR --only=synthetic --steps=5

Each config trains for 30 steps from each checkout, in a folder that is thrown away, and the losses
of the same step are compared. Prints the largest relative difference by config; exit code 1 if one
is above 1e-6 or a training fails. FOLDER holds `ml-1m/` and `amazon-beauty-5core/*.csv*`. Takes a
few minutes on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.common.results import arguments, metrics_lines

LIMIT = 1e-6
CONFIGS = {  # name -> config, folder of --data (none: the log is generated), more of the command
    "synthetic": ("configs/synthetic.py", "", []),
    "ml-1m": ("configs/ml_1m.py", "ml-1m", []),
    "ranking": ("configs/ml_1m.py:ranking", "ml-1m", []),
    "ranking-dlrm": ("configs/ml_1m.py:ranking-dlrm", "ml-1m", []),
    "beauty": (
        "configs/amazon.py:beauty",
        "amazon-beauty-5core/*.csv*",
        [
            "--config.data.source=csv",
            "--config.loss.kind=group",
            "--config.loss.group=32",
            "--config.optimizer.table=rowwise_adamw",
        ],
    ),
}


def losses(checkout: Path, name: str, args: argparse.Namespace) -> list[float]:
    """Loss of each step of a config, trained by the code of `checkout`.

    Raises:
      SystemExit: the log is missing, or the training fails.
    """
    config, pattern, change = CONFIGS[name]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gr_jax.train", f"--config={config}", *change]
        command += [f"--workdir={folder}/run", "--report=false"]
        command += [f"--config.train.steps={args.steps}", "--config.train.log_every=1"]
        command += [f"--config.data.prepared={folder}/prepared"]
        if pattern:
            logs = sorted(args.data.absolute().glob(pattern)) if args.data else []
            if not logs:
                sys.exit(f"{name}: no {pattern} in --data={args.data}")
            command.append(f"--config.data.path={logs[0]}")
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name} fails in {checkout}:\n{done.stderr.strip()[-2000:]}")
        lines = metrics_lines(Path(folder) / "run")
    return [line["loss"] for line in lines if line["split"] == "train"]


def largest_difference(before: list[float], after: list[float]) -> float:
    """Largest relative difference of two runs' losses; infinity if one has more steps."""
    if len(before) != len(after) or not before:
        return float("inf")
    apart = [abs(a - b) / max(abs(b), 1e-30) for b, a in zip(before, after, strict=True)]
    return float("inf") if any(x != x for x in apart) else max(apart)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--before", type=Path, required=True, help="checkout to compare with")
    parser.add_argument("--after", type=Path, required=True, help="checkout to compare")
    parser.add_argument("--data", type=Path, help="folder of the raw logs")
    parser.add_argument("--only", default=",".join(CONFIGS), help="configs, with commas between")
    parser.add_argument("--steps", type=int, default=30, help="steps of each training")
    args = parser.parse_args()
    if unknown := set(args.only.split(",")) - set(CONFIGS):
        parser.error(f"--only: no {', '.join(sorted(unknown))}; there are {', '.join(CONFIGS)}")

    worst = 0.0
    for name in args.only.split(","):
        apart = largest_difference(*(losses(c, name, args) for c in (args.before, args.after)))
        print(f"{name:14} {apart:.1e}", flush=True)
        worst = max(worst, apart)
    return 1 if worst > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
