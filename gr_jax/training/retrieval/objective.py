"""Retrieval: predict the next item; evaluated by ranking the whole catalogue."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from gr_jax.baselines import knn_vectors
from gr_jax.baselines.knn_vectors import KnnVectors
from gr_jax.baselines.training_events import popularity
from gr_jax.config import Config
from gr_jax.data.batches import epochs, tokenizer
from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.evaluation import EvaluationBatches, evaluation_batches
from gr_jax.data.batches.splits import Split, TrainingLog, day, held_out, training_log
from gr_jax.training import processes
from gr_jax.training.retrieval import evaluation, metrics, rank_file
from gr_jax.training.retrieval.baselines import baselines
from gr_jax.training.retrieval.beyond_accuracy import PARTS
from gr_jax.training.retrieval.step import make_train_step
from gr_jax.training.run import Run
from gr_jax.training.speed import StepCost
from gr_jax.training.state import TrainState

BEST = "ndcg@10"  # the validation metric that picks the checkpoint
SHOWN = ("hr@10", "hr@50", "hr@200", "ndcg@10", "ndcg@200", "mrr", "log_perplexity")
BEYOND = (
    *("coverage@10", "novelty@10", "repeats", "cold"),
    *(f"hr@10/{part}" for part in PARTS),
)


def own_metrics(config: Config) -> tuple[str, ...]:
    """The metrics that `evaluate.at` adds to those shown."""
    added = (f"{metric}@{k}" for metric in ("hr", "ndcg") for k in sorted(set(config.evaluate.at)))
    return tuple(name for name in added if name not in SHOWN)


def shown(config: Config) -> tuple[str, ...]:
    """The metrics of the final table."""
    return (*SHOWN, *own_metrics(config), *BEYOND[:2])


KNN_WEIGHTS = (0.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0)  # of its scores, in logits
WEIGHTS_STALE = 2  # weights without a better NDCG@10, after which none is tried


class Retrieval:
    """The objective of a retrieval run; members as of `training.objective.Objective`."""

    headline = ("hr@10", "ndcg@10", "log_perplexity")

    def __init__(self, run: Run):
        self.run = run
        self.shown = shown(run.config)
        self.epochs = run.config.train.epochs
        self._user_ranks = evaluation.make_user_ranks(
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
            evaluate=config.evaluate,
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
            *self._about_moments(),
        )

    def _about_moments(self) -> tuple[str, ...]:
        """The moments of a split by time, and whom it asks."""
        events, evaluate = self.run.dataset.events, self.run.config.evaluate
        if evaluate.split != "time":
            return ()
        held = held_out(events, evaluate)
        assert held.moments is not None
        trains = int((held.train_end - events.offsets[:-1]).sum())
        valid, test = (int((held.target[split] >= 0).sum()) for split in ("valid", "test"))
        since = [day(moment) for moment in held.moments]
        return (
            f"split   by time: {trains:,} events before {since[0]} train, validation from then on,"
            f" test from {since[1]}",
            f"        asked are {valid:,} and {test:,} of {events.num_users:,} users; the others"
            " have no event before, or none after",
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

    def evaluate(
        self, params: dict, split: Split, *, ranks: Path | None = None
    ) -> dict[str, float]:
        """Metrics over the users of a split, whose ranks are also written to `ranks`.

        With `model.knn_rank` they are those of the model and item-kNN together, once `complete` has
        found a weight. Metrics of lists are computed for the test alone.
        """
        found = self._user_ranks(
            params, self._held_out(split), with_best=split == "test", knn=self._knn
        )
        if ranks is not None:
            processes.on_first(lambda: rank_file.write(ranks, found, self.run.dataset.catalogue))
        return evaluation.summary(found, self._popularity, self.run.config.evaluate.at)

    @functools.cached_property
    def _training_log(self) -> TrainingLog:
        return training_log(self.run.dataset, self.run.config.evaluate)

    @functools.cached_property
    def _popularity(self) -> Float[np.ndarray, " X1"]:
        return popularity(self._training_log)

    def validate(self, params: dict, epochs_done: int) -> dict[str, float]:
        """Metrics of the model alone on the validation split."""
        found = self._user_ranks(params, self._held_out("valid"))
        return evaluation.summary(found, self._popularity, self.run.config.evaluate.at)

    @functools.cached_property
    def _knn(self) -> KnnVectors | None:
        """What `complete` found."""
        if not self.run.config.model.knn_rank:
            return None
        return knn_vectors.read(self.run.workdir, self.run.dataset.num_items)

    def complete(self, params: dict) -> str:
        """With `model.knn_rank`: learn item-kNN and the weight that is best on validation.

        It is written into the workdir. Weights grow until NDCG@10 has not for `WEIGHTS_STALE`.

        Returns:
          A line that tells it; "" without `model.knn_rank`.
        """
        rank = self.run.config.model.knn_rank
        if not rank:
            return ""
        learnt, rows = knn_vectors.learn(self._training_log, rank), self._held_out("valid")
        found: list[tuple[float, float]] = []
        for weight in KNN_WEIGHTS:
            knn = replace(learnt, weight=weight) if weight else None
            ndcg = metrics.ndcg(self._user_ranks(params, rows, knn=knn).rank, 10)
            found.append((ndcg, -weight))  # of equal ones the smaller
            if len(found) - 1 - found.index(max(found)) == WEIGHTS_STALE:
                break
        ndcg, weight = max(found)
        best = self._knn = replace(learnt, weight=-weight)
        processes.on_first(lambda: knn_vectors.write(best, self.run.workdir))
        return (
            f"item-kNN is added with a weight of {-weight:g}: ndcg@10 on validation"
            f" {found[0][0]:.4f} -> {ndcg:.4f}"
        )

    def score(self, result: dict[str, float] | None, epochs_done: int) -> float:
        """NDCG@10."""
        return (result or {})[BEST]

    def baselines(self, tell: Callable[[str], None]) -> dict[str, dict[str, float]]:
        """Popularity, a Markov chain, item-kNN and EASE, as `baselines.baselines`."""
        return baselines(
            self._training_log,
            self._held_out("valid"),
            self._held_out("test"),
            at=self.run.config.evaluate.at,
            tell=tell,
        )

    def _plan_evaluation(self, split: Split) -> EvaluationBatches:
        run, config = self.run, self.run.config
        return evaluation_batches(
            run.dataset,
            config.data,
            config.evaluate,
            split,
            run.scheme,
            device_multiple=run.mesh.shape["data"],
        )


def item_log_q(run: Run, plan: epochs.TrainBatches) -> Float[Array, " rows"]:
    """Log of each item's share of the training labels: the probability of an in-batch negative."""
    labels = tokenizer.labels(run.dataset.events, plan.spans.following(), run.scheme)
    counts = np.bincount(labels[labels > 0], minlength=run.item_entries)
    counts = counts.astype(np.float32)
    return jnp.log(np.maximum(counts, 1) / counts.sum())
