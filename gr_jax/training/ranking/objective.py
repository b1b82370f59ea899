"""Ranking: predict what the user will do with an item, from the past alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import PRNGKeyArray

from gr_jax.config import ConfigError
from gr_jax.data.batches import impressions, ranking, streaming
from gr_jax.data.batches.batch import Batch, Impressions
from gr_jax.data.batches.epochs import TrainBatches
from gr_jax.data.batches.packing import padded
from gr_jax.data.batches.sequences import time_bounds
from gr_jax.data.batches.splits import Split
from gr_jax.data.batches.tokenizer import outcomes
from gr_jax.models.heads import are_regressions
from gr_jax.training.ranking import metrics
from gr_jax.training.ranking.baselines import baselines
from gr_jax.training.ranking.evaluation import make_evaluator
from gr_jax.training.ranking.step import make_train_step
from gr_jax.training.run import Run
from gr_jax.training.speed import StepCost
from gr_jax.training.state import TrainState


class Ranking:
    """The objective of a ranking run; members as of `training.objective.Objective`.

    The model is an encoder of sequences or a DLRM on impressions; it trains in shuffled epochs of
    the events before the validation part, or once through a stream of windows of time.
    """

    def __init__(self, run: Run):
        config, times = run.config, run.dataset.events.timestamp
        self.run = run
        self.shown = metrics.metric_names(config.ranking.tasks)
        self.headline = self.shown[: 2 * len(config.ranking.tasks)]
        self._is_stream = config.train.mode == "streaming"
        self._bounds = time_bounds(times, config.ranking)
        first, test_from = self._bounds["train"][0], self._bounds["test"][0]

        # Times between which windows lie; without a stream all training events are one window.
        self._edges = np.array([first, self._bounds["valid"][0]])
        if self._is_stream:
            self._edges = streaming.window_edges(times, first, test_from, config.train.windows)
        self.epochs = len(self._edges) - 1 if self._is_stream else config.train.epochs
        self._evaluate = make_evaluator(run)
        self._labelled = functools.lru_cache(maxsize=2)(self._plan_evaluation)

    @functools.cached_property
    def plan(self) -> TrainBatches | streaming.StreamBatches | impressions.ImpressionBatches:
        """Packed histories or single impressions, in shuffled epochs or as a stream of windows."""
        run, config = self.run, self.run.config
        if config.model.kind == "dlrm":
            times = self._edges.tolist()
            windows = [
                impressions.events_between(run.dataset.events, a, b)
                for a, b in zip(times[:-1], times[1:], strict=True)
            ]
            return impressions.ImpressionBatches(
                run.dataset,
                run.scheme,
                tuple(windows),
                batch_size=config.train.batch_users,
                max_length=config.data.max_length,
                shuffled=not self._is_stream,
                seed=config.seed,
                catalogue_features=self._item_features(),
            )
        if self._is_stream:
            return streaming.stream_batches(
                run.dataset,
                config,
                run.scheme,
                self._edges,
                shards=run.mesh.shape["data"],
            )
        return ranking.training_batches(
            run.dataset,
            config,
            run.scheme,
            int(self._edges[-1]),
            shards=run.mesh.shape["data"],
        )

    @functools.cached_property
    def cost(self) -> StepCost:
        """The mean batch of the first epoch, or of the whole stream."""
        run, plan = self.run, self.plan
        lengths, steps = self._lengths_and_steps
        if isinstance(plan, impressions.ImpressionBatches):
            size = padded(plan.batch_size, run.mesh.shape["data"])
            fill = float(lengths.sum()) / (steps * size * plan.max_length)
        else:
            fill = plan.fill
        return StepCost.mean(
            run.config, lengths, steps=steps, fill=fill, num_items=run.dataset.num_items
        )

    @functools.cached_property
    def _lengths_and_steps(self) -> tuple[np.ndarray, int]:
        """Tokens of each sequence of the first epoch or the stream, and the batches they fill."""
        plan, events = self.plan, self.run.dataset.events
        if isinstance(plan, TrainBatches):
            return plan.count(plan.epoch(0).spans), plan.steps(0)
        if isinstance(plan, streaming.StreamBatches):
            return plan.lengths, plan.first_step(self.epochs)
        event = np.concatenate(plan.windows)
        before = np.minimum(event - events.offsets[events.users_of(event)], plan.max_length)
        return before, plan.first_step(len(plan.windows))

    @property
    def about(self) -> tuple[str, ...]:
        """What an example is, and the size of a batch."""
        plan, (lengths, _) = self.plan, self._lengths_and_steps
        if isinstance(plan, impressions.ImpressionBatches):
            what = f"{plan.batch_size} impressions"
            batch = f"batch   {what}, each with up to {plan.max_length} events before it"
            return (batch, *self._undefined())
        what = f"{len(lengths):,} sequences"
        if self._is_stream:
            what = f"{self.epochs} windows, {len(lengths):,} examples"
        rows = f"{plan.batch_rows} rows of {plan.row_length} tokens"
        return (
            f"tokens  {self.run.config.ranking.tokens}, {what} of {lengths.mean():.0f} tokens",
            f"batch   {rows}, {self.cost.fill:.1%} of them real",
            *self._undefined(),
        )

    def _undefined(self) -> tuple[str, ...]:
        """Lines on the tasks whose labels in a split leave NE undefined."""
        run, tasks, lines = self.run, self.run.config.ranking.tasks, []
        dataset = run.dataset
        for split in ("test",) if self._is_stream else ("valid", "test"):
            event = impressions.events_between(dataset.events, *self._bounds[split])
            outcome, known = outcomes(dataset.events, dataset.catalogue, event, tasks)
            single = metrics.one_class(outcome, known, tasks, are_regressions(tasks))
            for task, what in single.items():
                line = f"note    {task}: {what} in the {split} part, so NE and AUC are undefined"
                lines.append(f"{line} there; log loss is told and picks the best checkpoint")
        return tuple(lines)

    def make_step(
        self,
    ) -> Callable[[TrainState, Batch | Impressions, PRNGKeyArray], tuple[TrainState, dict]]:
        """The training step, to be jitted."""
        return make_train_step(self.run.graphdef, self.run.optimizer, self.run.config)

    def complete(self, params: dict) -> str:
        """Nothing follows the training."""
        return ""

    def evaluate(
        self, params: dict, split: Split, *, ranks: Path | None = None
    ) -> dict[str, float]:
        """Metrics over the labels of a split; empty if the split is, as with valid_from=test_from.

        Raises:
          ConfigError: the validation split of a stream; or a file of ranks is asked for.
        """
        if ranks is not None:
            raise ConfigError("--ranks: this run ranks no items (ranking.tasks), so there are none")
        if self._is_stream and split == "valid":
            raise ConfigError(
                "a stream has no validation split: metrics.jsonl has each window's metrics before"
                " training"
            )
        low, high = self._bounds[split]
        return self._evaluate(params, self._labelled(low, high)) if low < high else {}

    def validate(self, params: dict, epochs_done: int) -> dict[str, float] | None:
        """Metrics on the validation split, or on the next window of a stream."""
        low, high = self._bounds["valid"]
        if self._is_stream:
            if epochs_done + 1 >= len(self._edges):
                return None
            low, high = (int(edge) for edge in self._edges[epochs_done : epochs_done + 2])
        return self._evaluate(params, self._labelled(low, high)) if low < high else None

    def score(self, result: dict[str, float] | None, epochs_done: int) -> float:
        """Minus the error of the tasks; the latest is the best in a stream or without labels."""
        error = None if result is None else metrics.error(result, self.run.config.ranking.tasks)
        return float(epochs_done) if self._is_stream or error is None else -error

    def baselines(self, tell: Callable[[str], None]) -> dict[str, dict[str, float]]:
        """The constant rate, means of users and items, and a regression on counts."""
        tell("counts")
        return baselines(self.run.dataset, self.run.config.ranking.tasks, self._bounds)

    def _plan_evaluation(self, low: int, high: int) -> ranking.LabelPlan:
        """The batches of an evaluation on the events with low <= time < high."""
        run, config, devices = self.run, self.run.config, self.run.mesh.shape["data"]
        if config.model.kind != "dlrm":
            return ranking.label_batches(
                run.dataset, config, run.scheme, low, high, device_multiple=devices
            )
        return impressions.LabelImpressionBatches(
            run.dataset,
            run.scheme,
            impressions.events_between(run.dataset.events, low, high),
            batch_size=max(impressions.impression_size(config, devices), 1024 * devices),
            max_length=config.data.max_length,
            catalogue_features=self._item_features(),
        )

    def _item_features(self) -> np.ndarray | None:
        """Feature values of every item, with the rows of the item table."""
        return impressions.item_feature_table(self.run.dataset, self.run.item_entries)
