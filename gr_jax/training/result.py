"""The end of a training: the best checkpoint on both splits, result.json and the final table."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import time
from pathlib import Path

import jax

import gr_jax
from gr_jax.files import write_whole
from gr_jax.training import processes
from gr_jax.training.checkpoint import Checkpoints, Progress
from gr_jax.training.console import metrics_table, not_beaten_line, on_test, repeats_line, say
from gr_jax.training.init_from import origin
from gr_jax.training.metrics_log import MetricsLog
from gr_jax.training.objective import Objective
from gr_jax.training.state import TrainState, abstract, free
from gr_jax.training.tables.admission import catalogue_maker


def finish(
    objective: Objective,
    state: TrainState,
    progress: Progress,
    checkpoints: Checkpoints,
    log: MetricsLog,
    *,
    started: float,
) -> None:
    """Evaluate the checkpoint with the best validation on both splits, and report the metrics."""
    step = int(state.step)
    if not progress.best_step:  # cut short by a lower train.steps, before the first validation
        progress = dataclasses.replace(progress, best_step=step)
    if progress.best_step != step:
        target = abstract(state)
        free(state)  # there need not be room for two
        best = checkpoints.restore(target, step=progress.best_step)
        assert best is not None
        state = best[0]
    params = catalogue_maker(objective.run.mesh)(state)

    if objective.run.config.train.mode == "streaming":  # the last window before training on it
        valid = log.last("valid")
    else:
        valid = objective.evaluate(params, "valid")
    results = {"valid": valid, "test": objective.evaluate(params, "test")}
    processes.on_first(lambda: report(objective, results, progress.best_step, log, started))


def report(
    objective: Objective,
    results: dict[str, dict[str, float]],
    best_step: int,
    log: MetricsLog,
    started: float,
) -> None:
    """Write result.json and the test line of metrics.jsonl, and print the table."""
    run = objective.run
    path = run.workdir / "result.json"
    if reported_step(path) != best_step:
        epoch = objective.plan.locate(best_step)[0]
        log.write(best_step, epoch, "test", results["test"])

    baselines = objective.baselines()
    counts = {name: getattr(run.dataset, name) for name in ("num_users", "num_items", "num_events")}
    result = {
        **results,
        "baselines": baselines,
        "best_step": best_step,
        "seed": run.config.seed,
        **origin(run.workdir),
        "wall_seconds": time.monotonic() - started,
        "dataset": {"source": run.config.data.source} | counts,
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
    }
    write_whole(path, json.dumps(result, indent=2) + "\n")

    say(metrics_table(results | on_test(baselines), objective.shown))
    if line := not_beaten_line(results["test"], baselines):
        say(line)
    if line := repeats_line(results["test"], "test"):
        say(line)
    folder, seconds = run.workdir / "checkpoints", time.monotonic() - started
    say(f"best checkpoint: step {best_step} in {folder}; {seconds:.0f} s in all")
    say(f"next: python -m gr_jax.evaluate --workdir={run.workdir}, or another --config of configs/")


def reported_step(result: Path) -> int | None:
    """The best step in a result.json; None if there is none, or a damaged one to write again."""
    try:
        return json.loads(result.read_text())["best_step"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that it computes with."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain")
    ours = {"python": platform.python_version(), "gr_jax": gr_jax.__version__}
    return ours | {name: importlib.metadata.version(name) for name in packages}
