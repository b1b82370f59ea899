"""Arguments of a script, and results as JSON in `experiments/results`, for all experiments."""

from __future__ import annotations

import argparse
import json
import subprocess
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
    return " ".join(["python", *_script(), *(sys.argv[1:] if words is None else words)])


def in_own_process(*flags: str) -> Any:
    """Result of this script with other flags: the JSON in the last line that it prints.

    Raises:
      SystemExit: the process fails.
    """
    command = [sys.executable, *_script(), *flags]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def _script() -> list[str]:
    spec = sys.modules["__main__"].__spec__
    return ["-m", spec.name] if spec else sys.argv[:1]


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
