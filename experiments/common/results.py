"""Arguments of a script, and results as JSON in `experiments/results`, for all experiments."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Parser of a script whose `--help` is its docstring."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def command_line(words: Sequence[str] | None = None) -> str:
    """Command of this process as a reader would type it; `words` replace the given arguments."""
    spec = sys.modules["__main__"].__spec__
    name = f"-m {spec.name}" if spec else sys.argv[0]
    return " ".join(["python", name, *(sys.argv[1:] if words is None else words)])


def keep(file: Path | str, result: Any) -> None:
    """Write a result as JSON."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps(result, indent=1) + "\n")


def read(name: str) -> Any:
    """Content of experiments/results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def by_seed(folder: Path, name: str) -> dict[int, dict]:
    """Results of a run by seed: the files NAME-SEED.json that `retrieval_runs` writes."""
    rests = (file.stem.removeprefix(f"{name}-") for file in folder.glob(f"{name}-*.json"))
    seeds = sorted(int(rest) for rest in rests if rest.isdecimal())
    return {seed: json.loads((folder / f"{name}-{seed}.json").read_text()) for seed in seeds}


def metrics_lines(workdir: Path) -> list[dict]:
    """Lines of a run's metrics.jsonl, in the order in which they were written."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
