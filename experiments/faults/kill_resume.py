"""Resumes after ten kills of a training at random moments, against the uninterrupted run.

    python -m experiments.faults.kill_resume                # about 6 minutes on 2 idle cores
    python -m experiments.faults.kill_resume --kills=3 --json=experiments/results/kill_resume.json

The log is the generated one; a checkpoint is written every 7 steps, so that many kills fall into a
save. Exits with 1 unless the resumes found readable checkpoints and all arrays of the final state
(parameters and both moments) are equal to the last bit.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from experiments.common.results import ROOT, arguments, command_line, keep
from gr_jax.training.checkpoint import Checkpoints


def command(workdir: Path, prepared: Path) -> list[str]:
    overrides = {
        "data.prepared": prepared,
        "data.synthetic.num_users": 1000,
        "train.epochs": 12,
        "train.checkpoint_every": 7,
        "train.log_every": 1,
    }
    flags = [f"--config.{name}={value}" for name, value in overrides.items()]
    return [
        sys.executable,
        "-m",
        "gr_jax.train",
        "--config=configs/synthetic.py",
        f"--workdir={workdir}",
        *flags,
    ]


def last_step(workdir: Path) -> int:
    """The newest step in metrics.jsonl, 0 before the first."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def final_arrays(workdir: Path) -> list[np.ndarray]:
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoints.newest_arrays())]
    finally:
        checkpoints.close()


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--json", default="", help="file for the result")
    args = parser.parse_args()
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed, prepared = (Path(folder) / name for name in ("whole", "killed", "prepared"))
        subprocess.run(command(whole, prepared), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        total = last_step(whole)
        at_kill = []
        for kill in range(args.kills):
            process = subprocess.Popen(
                command(killed, prepared), cwd=ROOT, stdout=subprocess.DEVNULL
            )
            # Wait until the session has taken a step of its own, then a random moment more.
            before = last_step(killed)
            while process.poll() is None and last_step(killed) <= before:
                time.sleep(0.02)
            time.sleep(moments.uniform(0, 0.8))
            process.kill()
            process.wait()
            at_kill.append(last_step(killed))
            print(f"kill {kill + 1}: at step {at_kill[-1]} of {total}", flush=True)
        done = subprocess.run(command(killed, prepared), cwd=ROOT, capture_output=True, text=True)
        readable = done.returncode == 0 and "cannot be read" not in done.stderr
        pairs = (
            list(zip(final_arrays(whole), final_arrays(killed), strict=True)) if readable else []
        )
        equal = readable and all(np.array_equal(a, b) for a, b in pairs)
    result = {
        "kills": args.kills,
        "killed_at_step": at_kill,
        "steps": total,
        "arrays": len(pairs),
        "bit_equal": equal,
    }
    print(json.dumps(result))
    if args.json:
        keep(args.json, {"command": command_line(), **result})
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
