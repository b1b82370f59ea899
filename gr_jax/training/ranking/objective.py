"""Ranking as a task of the training loop: what will the user do with this item, from the past alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from gr_jax.config import Config, ConfigError
from gr_jax.data.batches import impressions, ranking, streaming
from gr_jax.data.batches.batch import Batch, Impressions, Labels
from gr_jax.data.batches.ranking import LabelPlan
from gr_jax.data.batches.sequences import Split, time_bounds
from gr_jax.data.batches.tokenizer import outcomes
from gr_jax.models.embeddings import table_rows
from gr_jax.models.flops import train_flops
from gr_jax.training import sharding
from gr_jax.training.optimizer import Optimizer
from gr_jax.training.ranking import metrics
from gr_jax.training.ranking.losses import ranking_loss
from gr_jax.training.retrieval.evaluation import one_behind
from gr_jax.training.run import Run
from gr_jax.training.state import TrainState
from gr_jax.training.tables.update import descend
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
    def rows_between(low: int, high: int) -> LabelPlan:
        if config.model.kind == "dlrm":
            events = impressions.events_between(dataset.events, low, high)
            size = max(impressions.impression_size(config, devices), 1024 * devices)
            table = impressions.item_feature_table(dataset, table_rows(dataset.num_items))
            return impressions.LabelImpressionBatches(
                dataset, run.scheme, events, size, config.data.max_length, table
            )
        return ranking.label_batches(
            dataset, config, run.scheme, low, high, device_multiple=devices
        )

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


def is_regression(tasks: tuple[str, ...]) -> tuple[bool, ...]:
    """Which tasks predict a number and not a probability."""
    return tuple(task == "rating" for task in tasks)


def batches(run: Run, edges: np.ndarray) -> Batches:
    """The training batches: shuffled epochs of the events up to the last edge, or a stream of windows."""
    config, dataset, device_multiple = run.config, run.dataset, run.device_multiple
    is_stream = config.train.mode == "streaming"
    epochs = len(edges) - 1 if is_stream else config.train.epochs
    if config.model.kind == "dlrm":
        times = edges.tolist()
        windows = [
            impressions.events_between(dataset.events, a, b)
            for a, b in zip(times[:-1], times[1:], strict=True)
        ]
        size = impressions.impression_size(config, device_multiple)
        table = impressions.item_feature_table(dataset, table_rows(dataset.num_items))
        plan = impressions.ImpressionBatches(
            dataset,
            run.scheme,
            tuple(windows),
            size,
            config.data.max_length,
            not is_stream,
            config.seed,
            table,
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
        plan = streaming.stream_batches(
            dataset, config, run.scheme, edges, device_multiple=device_multiple
        )
        lengths, steps = plan.lengths, plan.first_step(epochs)
        what = f"{len(edges) - 1} windows, {len(lengths):,} examples"
    else:
        plan = ranking.training_batches(
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


def make_train_step(
    graphdef: nnx.GraphDef, optimizer: Optimizer, config: Config
) -> Callable[[TrainState, Batch | Impressions, PRNGKeyArray], tuple[TrainState, dict]]:
    """`train_step(state, batch, key) -> (state, metrics)`, to be jitted with the state donated.

    Metrics: `loss`, the weighted sum over tasks of the mean over their labels; and each task's mean as `loss/TASK`.
    """
    tasks = config.ranking.tasks
    weights = tuple(float(w) for w in config.ranking.weights) or (1.0,) * len(tasks)

    def objective(params: dict, batch: Batch | Impressions, *_: Any, key: PRNGKeyArray) -> Any:
        logits = nnx.merge(graphdef, params).rank(batch, key=key)
        assert batch.outcome is not None and batch.outcome_weight is not None
        loss, parts = ranking_loss(
            logits,
            batch.outcome,
            batch.outcome_weight,
            is_regression=is_regression(tasks),
            weights=weights,
        )
        return loss, {f"loss/{task}": parts["task_loss"][y] for y, task in enumerate(tasks)}

    def train_step(
        state: TrainState, batch: Batch | Impressions, key: PRNGKeyArray
    ) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(key, state.step)
        of_step = functools.partial(objective, key=key)
        return descend(
            of_step,
            optimizer,
            state,
            batch,
            jax.random.fold_in(key, 1),
            exchange=config.mesh.exchange,
        )

    return train_step


def make_evaluator(run: Run) -> Callable[[dict, LabelPlan], dict[str, float]]:
    """`evaluate(params, rows) -> metrics` of the events that the rows judge; see `ranking_metrics.summarise`."""
    tasks = run.config.ranking.tasks
    squash = ~np.array(is_regression(tasks))

    @functools.partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
    def predict(params: dict, batch: Batch | Impressions) -> Float[Array, "T Y"]:
        logits = nnx.merge(run.graphdef, params).rank(batch)
        logits = logits.reshape(-1, len(tasks))
        return jnp.where(squash, jax.nn.sigmoid(logits), logits)

    on_mesh = sharding.on_mesh(run.mesh, predict)

    def evaluate(params: dict, rows: LabelPlan) -> dict[str, float]:
        predictions, judged = predict_all(lambda batch: on_mesh(params, batch), rows, run)
        return metrics.summarise(
            predictions,
            judged.outcome,
            judged.known,
            judged.user,
            judged.history,
            tasks,
            is_regression(tasks),
        )

    return evaluate


def predict_all(
    predict: Callable, rows: LabelPlan, run: Run
) -> tuple[Float[np.ndarray, "T Y"], Labels]:
    """Predictions of all events that `rows` judge, and the events."""

    def predicted() -> Iterator[tuple[Array, Labels]]:
        for index in range(len(rows)):
            batch, labels = rows.batch(index)
            yield predict(sharding.put_whole(batch, sharding.batch_sharding(run.mesh))), labels

    predictions, judged = [], []
    for values, labels in one_behind(predicted()):
        predictions.append(np.asarray(values)[labels.place])
        judged.append(labels)
    fields = ("place", "user", "history", "outcome", "known")
    return np.concatenate(predictions), Labels(
        *(np.concatenate([getattr(x, f) for x in judged]) for f in fields)
    )


def constant_rate(run: Run, bounds: dict[Split, tuple[int, int]]) -> dict[str, float]:
    """Metrics on the test split of predicting the mean outcome before it for every event."""
    dataset, tasks = run.dataset, run.config.ranking.tasks
    low, high = bounds["test"]
    past = impressions.events_between(dataset.events, bounds["train"][0], low)
    event = impressions.events_between(dataset.events, low, high)
    value, known = outcomes(dataset.events, dataset.catalogue, past, tasks)
    mean = (value * known).sum(0) / np.maximum(known.sum(0), 1)
    value, known = outcomes(dataset.events, dataset.catalogue, event, tasks)
    user = dataset.events.users_of(event)
    prediction = np.broadcast_to(mean, value.shape)
    history = event - dataset.events.offsets[user]
    return metrics.summarise(prediction, value, known, user, history, tasks, is_regression(tasks))
