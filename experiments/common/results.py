"""Results as JSON in `experiments/results`: where every experiment keeps and finds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"


def read(name: str) -> Any:
    """Content of experiments/results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def by_seed(folder: Path, name: str) -> dict[int, dict]:
    """Results of a run by seed: the files NAME-SEED.json that `retrieval_runs` writes."""
    rests = (file.stem.removeprefix(f"{name}-") for file in folder.glob(f"{name}-*.json"))
    seeds = sorted(int(rest) for rest in rests if rest.isdecimal())
    return {seed: json.loads((folder / f"{name}-{seed}.json").read_text()) for seed in seeds}
