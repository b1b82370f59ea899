"""The tables of the report: results, speed, facts of the runs, and differences of their configs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gr_jax.config import Config
from gr_jax.config.objective import MOMENTS
from gr_jax.config.overrides import comments, leaves
from gr_jax.reporting.records import Json, Record
from gr_jax.training.console import with_error
from gr_jax.training.ranking.metrics import metric_names
from gr_jax.training.retrieval import objective as retrieval

LOWER_IS_BETTER = ("ne", "mse", "log_loss", "log_perplexity")
NEITHER = ("repeats", "cold")  # of the log, not of the model
NEAREST_TO_ONE = ("calibration",)
SPEED = (
    "Medians of the training reports. Fill: real tokens per token computed."
    " MFU: share of peak in compute_dtype."
)


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading; the first `labels` columns are words, the others numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1
    best: frozenset[tuple[int, int]] = frozenset()  # (row, column) of the best value of a column


def kinds(records: Sequence[Record]) -> list[list[Record]]:
    """Groups of runs whose metrics can be compared: those of the same log and `protocol`."""
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        data = record.config.data
        # One log may be named by several paths, and the file at a path may change: the contents
        # distinguish logs, features aside. Runs of older versions have no hash of theirs.
        events = record.log.get("events_hash")
        log = (events,) if events else (data.source, data.path, data.synthetic)
        groups.setdefault((*log, *protocol(record).items()), []).append(record)
    return list(groups.values())


def protocol(record: Record) -> Json:
    """The fields, by name, that decide which events are evaluated, and how.

    Tasks and positive events are given by their definitions in `data.actions`: one name can stand
    for two things.
    """
    config, every = record.config, leaves(record.config)
    defined = {action.partition("=")[0].strip(): action for action in config.data.actions}
    names = ["data.filter", *["data.min_events"] * (config.data.filter != "none")]
    if record.tasks:
        names += ["ranking.valid_from", "ranking.test_from"]
        labels = {"ranking.tasks": tuple(defined.get(task, task) for task in record.tasks)}
    else:
        names += ["evaluate.split", "evaluate.exclude", "evaluate.valid_users"]
        if config.evaluate.split == "time":
            names += [f"evaluate.{name}" for name in MOMENTS]
        labels = {"loss.positive": defined.get(config.loss.positive, "")}
    return labels | {name: every[name] for name in names}


def title(record: Record) -> str:
    """Title of a group of comparable runs: task, source and non-default protocol settings."""
    decided, default = protocol(record), leaves(Config())
    tasks = decided.pop("ranking.tasks", ())
    what = f"ranking of {', '.join(tasks)}" if tasks else "retrieval"
    return ", ".join(
        [
            what,
            record.config.data.source,
            *(f"{n}={v}" for n, v in decided.items() if v != default[n]),
        ]
    )


def results(records: Sequence[Record]) -> Table:
    """Metrics of runs of one kind on their splits, and of the baselines on the test split."""
    tasks = records[0].tasks
    return _results(records, metric_names(tasks) if tasks else retrieval.SHOWN)


def further_results(records: Sequence[Record]) -> dict[str, Table]:
    """More tables of runs of one kind by their headings: own K, and what is beyond accuracy.

    A table for which there are no values is left out.
    """
    if records[0].tasks:
        return {}
    own = dict.fromkeys(name for r in records for name in retrieval.own_metrics(r.config))
    found = {
        "At other K": _results(records, tuple(own)),
        "Beyond accuracy": _results(records, retrieval.BEYOND),
    }
    return {name: table for name, table in found.items() if len(table.head) > 2}


def _results(records: Sequence[Record], metrics: Sequence[str]) -> Table:
    rows: list[tuple[str, str, Json]] = []  # (run, split, values)
    for record in records:
        if record.result is None:
            split, line = record.evaluated
            values = {name: value for name, value in line.items() if isinstance(value, float)}
            rows.append((record.name, f"{split or 'no validation yet'} (not finished)", values))
        else:
            rows += [(record.name, split, record.result[split]) for split in ("valid", "test")]
    rows += _baselines(records)
    # A metric that the labels leave undefined has no column.
    defined = {name for *_, values in rows for name in values}
    metrics = [name for name in metrics if name in defined or not defined]
    cells = (tuple(with_error(values, name) for name in metrics) for *_, values in rows)
    table = tuple((name, split, *line) for (name, split, _), line in zip(rows, cells, strict=True))
    head = (name.replace("/popularity_", " ") for name in metrics)
    return Table(("run", "split", *head), table, 2, _best(metrics, rows))


def _baselines(records: Sequence[Record]) -> list[tuple[str, str, Json]]:
    """Name, split and metrics of the baselines; equal ones once, with the runs they belong to."""
    found: list[tuple[str, Json, list[str]]] = []
    for record in records:
        baselines = (record.result or {}).get("baselines", {})  # runs of older versions have none
        for name, values in baselines.items():
            same = (runs for *known, runs in found if known == [name, values])
            runs = next(same, None)
            if runs is None:
                found.append((name, values, [record.name]))
            else:
                runs.append(record.name)
    names = [name for name, *_ in found]
    return [
        (name if names.count(name) == 1 else f"{name} ({', '.join(runs)})", "test", values)
        for name, values, runs in found
    ]


def _best(
    metrics: Sequence[str], rows: Sequence[tuple[str, str, Json]]
) -> frozenset[tuple[int, int]]:
    """Row and column of the best test value of each metric that has several."""
    tests, found = [(i, values) for i, (_, split, values) in enumerate(rows) if split == "test"], []
    for column, metric in enumerate(metrics):
        having = [(_cost(metric, values[metric]), i) for i, values in tests if metric in values]
        if len(having) > 1 and metric not in NEITHER:
            found.append((min(having)[1], 2 + column))
    return frozenset(found)


def _cost(metric: str, value: float) -> float:
    kind = metric.partition("/")[0]
    if kind in NEAREST_TO_ONE:
        return abs(value - 1)
    return value if kind in LOWER_IS_BETTER else -value


def facts(records: Sequence[Record], parameters: Mapping[str, int]) -> Table:
    """Data, model and progress of each run; `parameters` by the name of the run, where known."""
    head = (
        "run",
        "state",
        "data",
        "users",
        "items",
        "events",
        "model",
        "parameters",
        "seed",
        "best step",
        "wall time",
    )
    return Table(head, tuple(_facts(record, parameters.get(record.name)) for record in records), 3)


def _facts(record: Record, parameters: int | None) -> tuple[str, ...]:
    config, result = record.config, record.result or {}
    dataset = result.get("dataset", {})
    counts = (
        f"{dataset[n]:,}" if n in dataset else "" for n in ("num_users", "num_items", "num_events")
    )
    state = "finished" if record.result is not None else f"not finished: step {record.last_step:,}"
    wall = duration(result["wall_seconds"]) if result else ""
    best = f"{result['best_step']:,}" if result else ""
    size = "" if parameters is None else f"{parameters:,}"
    return (
        record.name,
        state,
        config.data.source,
        *counts,
        config.model.kind,
        size,
        str(config.seed),
        best,
        wall,
    )


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> tuple(duration(s) for s in (45.4, 600.0, 9000.0))
    ('45 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def speed(records: Sequence[Record]) -> Table:
    """Medians of the training reports of each run."""
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "step_ms": ("ms/step", lambda x: f"{x:,.1f}"),
        "users_per_second": ("users/s", lambda x: f"{x:,.0f}"),
        "tokens_per_second": ("tokens/s", lambda x: f"{x:,.0f}"),
        "fill": ("fill", lambda x: f"{x:.1%}"),
        "mfu": ("MFU", lambda x: f"{x:.1%}"),
    }
    rows = []
    for record in records:
        row = [record.name, f"{record.last_step:,}"]
        for name, (_, shown) in columns.items():
            values = record.points("train", name)[1].tolist()
            row.append(shown(statistics.median(values)) if values else "")
        rows.append(tuple(row))
    return Table(("run", "steps", *(title for title, _ in columns.values())), tuple(rows))


def differences(records: Sequence[Record]) -> Table:
    """Fields of the configs that differ between runs, or of a single run from the defaults."""
    configs = {record.name: leaves(record.config) for record in records}
    if len(configs) == 1:
        configs = {"default": leaves(Config()), **configs}
    about, rows = comments(Config()), []
    for field in about:
        values = [config[field] for config in configs.values()]
        if any(value != values[0] for value in values):
            rows.append((field, *map(_text, values), about[field]))
    return Table(("field", *configs, "meaning"), tuple(rows), 2 + len(configs))


def _text(value: object) -> str:
    return value if isinstance(value, str) and value else repr(value)
