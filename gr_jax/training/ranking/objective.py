"""Ranking as a task of the training loop: what will the user do with this item, from the past alone."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from gr_jax.config import ConfigError
from gr_jax.data.batches import impressions, ranking, streaming
from gr_jax.data.batches.sequences import Split, time_bounds
from gr_jax.models.embeddings import table_rows
from gr_jax.models.flops import train_flops
from gr_jax.training.ranking.baseline import constant_rate
from gr_jax.training.ranking.evaluation import make_evaluator
from gr_jax.training.ranking.step import make_train_step
from gr_jax.training.run import Run
from gr_jax.training.task import Batches, Task, shards_line


def task(run: Run) -> Task:
    """The task of a ranking run, by an encoder of sequences or by impressions; in epochs or as a stream."""
    config, dataset = run.config, run.dataset
    bounds = time_bounds(dataset.events.timestamp, config.ranking)
    low, test_from = bounds["train"][0], bounds["test"][0]
    is_stream = config.train.mode == "streaming"
    edges = np.array([low, bounds["valid"][0]])
    if is_stream:
        edges = streaming.window_edges(
            dataset.events.timestamp, low, test_from, config.train.windows
        )
    devices = run.mesh.shape["data"]
    judge = make_evaluator(run)
    names = metric_names(config.ranking.tasks)

    @functools.lru_cache(maxsize=2)
    def rows_between(low: int, high: int) -> Any:
        if config.model.kind == "dlrm":
            events = impressions.events_between(dataset, low, high)
            size = max(impressions.impression_size(config, devices), 1024 * devices)
            side = impressions.item_side_rows(dataset, table_rows(dataset.num_items))
            return impressions.LabelImpressionBatches(
                dataset, run.scheme, events, size, config.data.max_length, side
            )
        return ranking.label_rows(dataset, config, run.scheme, low, high, device_multiple=devices)

    def validate(params: dict, epochs_done: int) -> dict[str, float] | None:
        if not is_stream:
            low, high = bounds["valid"]
            return judge(params, rows_between(low, high)) if low < high else None
        if epochs_done + 1 >= len(edges):
            return None  # no window is left that was not trained on
        return judge(params, rows_between(int(edges[epochs_done]), int(edges[epochs_done + 1])))

    def score(result: dict[str, float] | None, epochs_done: int) -> float:
        """Minus the mean NE; without a validation part, and in a stream, the latest is the best."""
        if is_stream or result is None:
            return float(epochs_done)
        return -result.get("ne", result.get(names[0], math.inf))

    def evaluate(params: dict, split: Split) -> dict[str, float]:
        if is_stream and split == "valid":
            raise ConfigError(
                "a stream has no validation split: metrics.jsonl has each window's metrics before training"
            )
        low, high = bounds[split]
        return (
            judge(params, rows_between(low, high)) if low < high else {}
        )  # {}: valid_from = test_from

    return Task(
        batches=lambda: batches(run, edges),
        train_step=lambda: make_train_step(run.graphdef, run.optimizer, config),
        evaluate=evaluate,
        validate=validate,
        score=score,
        baseline=lambda: ("constant rate", constant_rate(run, bounds)),
        shown=names,
        headline=names[: 2 * len(config.ranking.tasks)],
    )


def metric_names(tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The metrics of the final table: error, order and calibration of each task."""
    kinds = {True: ("mse",), False: ("ne", "auc", "user_auc", "calibration")}
    return tuple(f"{kind}/{task}" for task in tasks for kind in kinds[task == "rating"])


def batches(run: Run, edges: np.ndarray) -> Batches:
    """The training batches: shuffled epochs of the events up to the last edge, or a stream of windows."""
    config, dataset, device_multiple = run.config, run.dataset, run.device_multiple
    is_stream = config.train.mode == "streaming"
    epochs = len(edges) - 1 if is_stream else config.train.epochs
    if config.model.kind == "dlrm":
        times = edges.tolist()
        windows = [
            impressions.events_between(dataset, a, b)
            for a, b in zip(times[:-1], times[1:], strict=True)
        ]
        size = impressions.impression_size(config, device_multiple)
        side = impressions.item_side_rows(dataset, table_rows(dataset.num_items))
        plan = impressions.ImpressionBatches(
            dataset,
            run.scheme,
            tuple(windows),
            size,
            config.data.max_length,
            not is_stream,
            config.seed,
            side,
        )
        event, steps = np.concatenate(windows), plan.first_step(len(windows))
        before = np.minimum(
            event - dataset.events.offsets[dataset.events.users_of(event)], config.data.max_length
        )
        about = (
            f"batch   {size} impressions, each with up to {config.data.max_length} events before it",
        )
        return Batches(
            plan=plan,
            epochs=epochs,
            users_per_step=len(event) / steps,
            tokens_per_step=float(before.sum()) / steps,
            fill=float(before.sum()) / (steps * size * config.data.max_length),
            flops_per_step=train_flops(config, before, num_items=dataset.num_items) / steps,
            about=about,
        )
    if is_stream:
        plan = streaming.stream_rows(
            dataset, config, run.scheme, edges, device_multiple=device_multiple
        )
        lengths, steps = plan.lengths, plan.first_step(epochs)
        what = f"{len(edges) - 1} windows, {len(lengths):,} examples"
    else:
        plan = ranking.train_rows(
            dataset, config, run.scheme, int(edges[-1]), device_multiple=device_multiple
        )
        spans = plan.epoch(0).spans
        lengths, steps = plan.count(spans), plan.steps(0)
        what = f"{len(lengths):,} sequences"
    return Batches(
        plan=plan,
        epochs=epochs,
        users_per_step=len(lengths) / steps,
        tokens_per_step=float(lengths.sum()) / steps,
        fill=plan.fill,
        flops_per_step=train_flops(config, lengths, num_items=dataset.num_items) / steps,
        about=(
            f"tokens  {config.ranking.tokens}, {what} of {lengths.mean():.0f} tokens",
            f"batch   {plan.batch_rows} rows of {plan.row_length} tokens, {plan.fill:.1%} of them real",
            *shards_line(plan, config.model),
        ),
    )
