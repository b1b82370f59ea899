"""Retrieval as a task of the training loop: next-item loss, full-catalogue leave-one-out metrics."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gr_jax.data.batches import epochs, tokenizer
from gr_jax.data.batches.evaluation import EvaluationBatches, evaluation_batches
from gr_jax.data.batches.sequences import Split
from gr_jax.models.embeddings import table_rows
from gr_jax.models.flops import train_flops
from gr_jax.training.retrieval import evaluation, metrics
from gr_jax.training.retrieval.baseline import popularity_ranks, training_counts
from gr_jax.training.retrieval.step import make_train_step
from gr_jax.training.run import Run
from gr_jax.training.task import Batches, Task, shards_line

BEST = "ndcg@10"  # the validation metric that picks the checkpoint
SHOWN = ("hr@10", "hr@50", "hr@200", "ndcg@10", "ndcg@200", "mrr", "log_perplexity")


def task(run: Run) -> Task:
    """The task of a retrieval run."""
    config, dataset = run.config, run.dataset
    judge = evaluation.make_evaluator(
        run.graphdef, config, num_items=dataset.num_items, mesh=run.mesh
    )

    @functools.cache
    def rows_of(split: Split) -> EvaluationBatches:
        return evaluation_batches(
            dataset,
            config.data,
            split,
            run.scheme,
            batch_users=config.evaluate.batch_users,
            exclude=config.evaluate.exclude,
            sample=config.evaluate.valid_users if split == "valid" else 0,  # the test is on all
            device_multiple=run.mesh.shape["data"],
        )

    @functools.cache
    def train_rows() -> epochs.TrainBatches:
        return epochs.retrieval_batches(
            dataset,
            config.data,
            run.scheme,
            batch_users=config.train.batch_users,
            device_multiple=run.device_multiple,
            seed=config.seed,
        )

    def step():
        log_q = item_log_q(run, train_rows()) if config.loss.log_q else None
        return make_train_step(
            run.graphdef, run.optimizer, config, num_items=dataset.num_items, item_log_q=log_q
        )

    def popularity() -> tuple[str, dict[str, float]]:
        rows, count = (
            rows_of("test"),
            training_counts(dataset.events.offsets, dataset.events.item, dataset.num_items),
        )
        ranks = popularity_ranks(count, dataset.events.item, *rows.seen(rows.spans))
        return "popularity", metrics.rank_means(ranks)

    return Task(
        batches=lambda: batches(run, train_rows()),
        train_step=step,
        evaluate=lambda params, split: judge(params, rows_of(split)),
        validate=lambda params, epochs_done: judge(params, rows_of("valid")),
        score=lambda result, epochs_done: (result or {})[BEST],
        baseline=popularity,
        shown=SHOWN,
        headline=("hr@10", "ndcg@10", "log_perplexity"),
    )


def batches(run: Run, rows: epochs.TrainBatches) -> Batches:
    """The batches of the run, and the cost of one by the mean of the first epoch."""
    lengths, steps = rows.count(rows.epoch(0).spans), rows.steps(0)
    return Batches(
        plan=rows,
        epochs=run.config.train.epochs,
        users_per_step=len(lengths) / steps,
        tokens_per_step=float(lengths.sum()) / steps,
        fill=rows.fill,
        flops_per_step=train_flops(run.config, lengths, num_items=run.dataset.num_items) / steps,
        about=(
            f"loss    {run.config.loss.kind}",
            f"batch   {rows.batch_rows} rows of {rows.row_length} tokens, {rows.fill:.1%} of them real",
            *shards_line(rows, run.config.model),
        ),
    )


def item_log_q(run: Run, rows: epochs.TrainBatches) -> Float[Array, " rows"]:
    """Log of each item's share of the training labels, the probability that in-batch sampling draws it."""
    labels = tokenizer.labels(run.dataset.events, rows.spans.following(), run.scheme)
    counts = np.bincount(labels[labels > 0], minlength=table_rows(run.dataset.num_items)).astype(
        np.float32
    )
    return jnp.log(np.maximum(counts, 1) / counts.sum())
