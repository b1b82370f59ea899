"""Retrieval: predict the next item; evaluated by ranking the whole catalogue, leave-one-out."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from gr_jax.data.batches import epochs, tokenizer
from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.evaluation import EvaluationBatches, evaluation_batches
from gr_jax.data.batches.sequences import Split
from gr_jax.training.retrieval import evaluation
from gr_jax.training.retrieval.baselines import baselines
from gr_jax.training.retrieval.step import make_train_step
from gr_jax.training.run import Run
from gr_jax.training.speed import StepCost
from gr_jax.training.state import TrainState

BEST = "ndcg@10"  # the validation metric that picks the checkpoint
SHOWN = ("hr@10", "hr@50", "hr@200", "ndcg@10", "ndcg@200", "mrr", "log_perplexity")


class Retrieval:
    """The objective of a retrieval run; members as of `training.objective.Objective`."""

    shown = SHOWN
    headline = ("hr@10", "ndcg@10", "log_perplexity")

    def __init__(self, run: Run):
        self.run = run
        self.epochs = run.config.train.epochs
        self._evaluate = evaluation.make_evaluator(
            run.graphdef, run.config, num_items=run.dataset.num_items, mesh=run.mesh
        )
        self._held_out = functools.cache(self._plan_evaluation)

    @functools.cached_property
    def plan(self) -> epochs.TrainBatches:
        """The packed histories, shuffled epoch after epoch."""
        run, config = self.run, self.run.config
        return epochs.retrieval_batches(
            run.dataset,
            config.data,
            run.scheme,
            batch_users=config.train.batch_users,
            shards=run.mesh.shape["data"],
            seed=config.seed,
        )

    @functools.cached_property
    def cost(self) -> StepCost:
        """The mean batch of the first epoch."""
        plan, run = self.plan, self.run
        lengths = plan.count(plan.epoch(0).spans)
        return StepCost.mean(
            run.config,
            lengths,
            steps=plan.steps(0),
            fill=plan.fill,
            num_items=run.dataset.num_items,
        )

    @property
    def about(self) -> tuple[str, ...]:
        """The kind of loss and the size of a batch."""
        rows = f"{self.plan.batch_rows} rows of {self.plan.row_length} tokens"
        return (
            f"loss    {self.run.config.loss.kind}",
            f"batch   {rows}, {self.cost.fill:.1%} of them real",
        )

    def make_step(self) -> Callable[[TrainState, Batch, PRNGKeyArray], tuple[TrainState, dict]]:
        """The training step, to be jitted."""
        run = self.run
        log_q = item_log_q(run, self.plan) if run.config.loss.log_q else None
        return make_train_step(
            run.graphdef,
            run.optimizer,
            run.config,
            num_items=run.dataset.num_items,
            item_log_q=log_q,
        )

    def evaluate(self, params: dict, split: Split) -> dict[str, float]:
        """Metrics over the users of a split."""
        return self._evaluate(params, self._held_out(split))

    def validate(self, params: dict, epochs_done: int) -> dict[str, float]:
        """Metrics on the validation split."""
        return self.evaluate(params, "valid")

    def score(self, result: dict[str, float] | None, epochs_done: int) -> float:
        """NDCG@10."""
        return (result or {})[BEST]

    def baselines(self) -> dict[str, dict[str, float]]:
        """Popularity, a Markov chain, item-kNN and EASE, as `baselines.baselines`."""
        return baselines(self._held_out("valid"), self._held_out("test"))

    def _plan_evaluation(self, split: Split) -> EvaluationBatches:
        run, evaluate = self.run, self.run.config.evaluate
        return evaluation_batches(
            run.dataset,
            run.config.data,
            split,
            run.scheme,
            batch_users=evaluate.batch_users,
            exclude=evaluate.exclude,
            sample=evaluate.valid_users if split == "valid" else 0,  # the test is on all
            device_multiple=run.mesh.shape["data"],
        )


def item_log_q(run: Run, plan: epochs.TrainBatches) -> Float[Array, " rows"]:
    """Log of each item's share of the training labels: the probability of an in-batch negative."""
    labels = tokenizer.labels(run.dataset.events, plan.spans.following(), run.scheme)
    counts = np.bincount(labels[labels > 0], minlength=run.item_entries)
    counts = counts.astype(np.float32)
    return jnp.log(np.maximum(counts, 1) / counts.sum())
