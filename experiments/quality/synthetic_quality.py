"""Metrics and wall time of the commands of configs/synthetic.py: retrieval and ranking.

    python -m experiments.quality.synthetic_quality  # four trainings, about 10 minutes on 2 cores
    # one of them; the others' results are kept
    python -m experiments.quality.synthetic_quality --only=base

Each run is the command of a reader, by one seed, in a folder that is thrown away. The best possible
is known of these logs: `synthetic_structure.py` and `synthetic_ranking_structure.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.common.results import RESULTS, ROOT, arguments, keep

RESULT = RESULTS / "synthetic_quality.json"
RUNS = {  # name -> command line of gr_jax.train
    "base": ["--config=configs/synthetic.py"],
    "position": ["--config=configs/synthetic.py", "--config.model.bias=position"],
    "ranking": ["--config=configs/synthetic.py:ranking"],
    "ranking-dlrm": ["--config=configs/synthetic.py:ranking-dlrm"],
}


def trained(said: list[str]) -> dict:
    """Command of a run, with its result.json."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "gr_jax.train", *said, f"--workdir={workdir}"]
        subprocess.run(command, check=True, cwd=ROOT)
        return {"command": " ".join(["python -m gr_jax.train", *said])} | json.loads(
            (Path(workdir) / "result.json").read_text()
        )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=list(RUNS), help="one of the runs")
    names = [args.only] if (args := parser.parse_args()).only else list(RUNS)
    for name in names:
        result = json.loads(RESULT.read_text()) if RESULT.exists() else {"runs": {}}
        load = os.getloadavg()[0]
        result["runs"][name] = {
            "hardware": f"{os.cpu_count()} CPU cores, load {load:.1f} before"
        } | trained(RUNS[name])
        keep(RESULT, result)


if __name__ == "__main__":
    main()
