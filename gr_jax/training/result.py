"""The end of a training: the best checkpoint on both splits, result.json and the final table."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import time
from pathlib import Path
from typing import Any

import jax

import gr_jax
from gr_jax.files import write_whole
from gr_jax.training import processes
from gr_jax.training.checkpoint import Checkpoints, Progress
from gr_jax.training.console import (
    cold_line,
    metrics_table,
    not_beaten_line,
    on_test,
    repeats_line,
    say,
    say_late,
)
from gr_jax.training.init_from import origin
from gr_jax.training.metrics_log import MetricsLog
from gr_jax.training.objective import Objective
from gr_jax.training.retrieval.rank_file import TEST_RANKS
from gr_jax.training.run import Run
from gr_jax.training.state import TrainState, abstract, free
from gr_jax.training.tables.admission import catalogue_maker

Json = dict[str, Any]


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
        if line := objective.complete(params):
            say(line)
        valid = objective.evaluate(params, "valid")
    ranks = None if objective.run.config.ranking.tasks else objective.run.workdir / TEST_RANKS
    results = {"valid": valid, "test": objective.evaluate(params, "test", ranks=ranks)}
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

    baselines = baselines_of(objective)
    counts = {name: getattr(run.dataset, name) for name in ("num_users", "num_items", "num_events")}
    result = {
        **results,
        "baselines": baselines,
        "baselines_of": deciding(run),
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
    test = results["test"]
    notes = not_beaten_line(test, baselines), repeats_line(test, "test"), cold_line(test, "test")
    for line in filter(None, notes):
        say(line)
    say(f"best checkpoint: step {best_step} in {run.workdir / 'checkpoints'}")
    say(f"next: python -m gr_jax.evaluate --workdir={run.workdir}, or another --config of configs/")


def baselines_of(objective: Objective) -> dict[str, dict[str, float]]:
    """The baselines on the test split: those of result.json, if they are of this log and protocol.

    They may take minutes, and no training changes them.
    """
    known = _result(objective.run.workdir / "result.json")
    if known.get("baselines_of") == deciding(objective.run) and "baselines" in known:
        return known["baselines"]
    return objective.baselines(say_late("baselines"))


def deciding(run: Run) -> Json:
    """All that decides the metrics of the baselines, as JSON has it."""
    config = run.config
    evaluate = dataclasses.asdict(config.evaluate)
    for name in ("batch_users", "chunk_items"):
        del evaluate[name]
    found = {
        "dataset": run.dataset.hash,
        "gr_jax": gr_jax.__version__,
        "evaluate": evaluate,
        "max_length": config.data.max_length,
        "positive": config.loss.positive,
        "tasks": config.ranking.tasks,
        "valid_from": config.ranking.valid_from,
        "test_from": config.ranking.test_from,
    }
    return json.loads(json.dumps(found))


def reported_step(result: Path) -> int | None:
    """The best step in a result.json; None if there is none, or a damaged one to write again."""
    return _result(result).get("best_step")


def _result(path: Path) -> Json:
    """The contents of a result.json; empty if there is none, or a damaged one."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that it computes with."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain")
    ours = {"python": platform.python_version(), "gr_jax": gr_jax.__version__}
    return ours | {name: importlib.metadata.version(name) for name in packages}
