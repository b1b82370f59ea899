import dataclasses
from pathlib import Path

import numpy as np
import pytest

from gr_jax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    TrainConfig,
)
from gr_jax.data.batches import epochs
from gr_jax.data.batches.tokenizer import token_scheme
from gr_jax.data.dataset import Dataset
from gr_jax.models.flops import train_flops
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from gr_jax.training import sharding
from gr_jax.training.optimizer import make_optimizer
from gr_jax.training.retrieval import metrics
from gr_jax.training.retrieval import objective as retrieval
from gr_jax.training.run import Run
from tests.data.batches.ranking_log import random_dataset

LIKED = LossConfig(positive="liked", kind="group", group=8, sampler="in_batch", log_q=True)


def run_of(dataset: Dataset, loss: LossConfig) -> Run:
    config = Config(
        data=DataConfig(
            max_length=6, row_length=16, max_series=3, actions=("watched=1", "liked=rating>=4")
        ),
        model=ModelConfig(width=8, num_blocks=1, qk_width=4, v_width=4),
        loss=loss,
        train=TrainConfig(batch_users=4),
        mesh=MeshConfig(data=1),
    )
    scheme, mesh = token_scheme(config, dataset), sharding.make_mesh(config.mesh)
    graphdef, init = make_model(config.model, ModelSizes.of(config, dataset, scheme))
    return Run(
        config,
        Path("."),
        dataset,
        scheme,
        mesh,
        graphdef,
        init,
        make_optimizer(config.optimizer),
    )


def train_rows(run: Run) -> epochs.TrainBatches:
    return epochs.retrieval_batches(run.dataset, run.config.data, run.scheme, batch_users=4)


def test_log_q_is_the_share_of_each_item_among_the_labels_that_in_batch_negatives_are_drawn_from():
    run = run_of(random_dataset(0, users=30), LIKED)
    rows = train_rows(run)
    label = np.concatenate([np.asarray(rows.batch(i).label) for i in range(rows.steps(0))])
    counts = np.bincount(label[label > 0], minlength=8)
    assert 0 < counts.sum() < rows.spans.length.sum(), "some events are not liked"
    had = np.flatnonzero(counts)
    q = np.exp(np.asarray(retrieval.item_log_q(run, rows)))
    np.testing.assert_allclose(q[had], counts[had] / counts.sum(), rtol=1e-6)


def test_the_speed_of_training_counts_the_tokens_of_attributes_and_series_too():
    run = run_of(random_dataset(2, users=30), LossConfig())
    rows = train_rows(run)
    segments = np.concatenate([rows.batch(i).segment for i in range(rows.steps(0))])
    cost = retrieval.Retrieval(run).cost
    assert (
        cost.tokens
        == (segments > 0).sum() / rows.steps(0)
        > rows.spans.length.sum() / rows.steps(0)
    )
    lengths = np.array([(row == s).sum() for row in segments for s in set(row[row > 0])])
    expected = train_flops(run.config, lengths, num_items=run.dataset.num_items) / rows.steps(0)
    assert cost.flops == pytest.approx(expected)


def popularity_by_user(run: Run) -> dict[str, float]:
    """Metrics of popularity, written out user by user as the evaluation protocol says."""
    dataset, loss, n = run.dataset, run.config.loss, run.config.data.max_length
    assert dataset.events.action is not None
    events, evaluate = dataset.events, run.config.evaluate
    time = np.sort(events.timestamp)
    low, high = (time[int(len(time) * share)] for share in (0.8, 0.9))
    train, asked = [], []
    for a, b in zip(events.offsets[:-1], events.offsets[1:], strict=True):
        log = list(range(a, b))
        if evaluate.split == "leave_one_out":
            train += log[:-2]
            asked += [log] if len(log) >= 3 else []
        else:
            before = [event for event in log if events.timestamp[event] < high]
            train += [event for event in log if events.timestamp[event] < low]
            asked += [log[: len(before) + 1]] if 0 < len(before) < len(log) else []
    count = np.bincount(events.item[train], minlength=8)
    ranks = []
    for log in asked:
        if loss.positive and not events.action[log[-1]] >> 1 & 1:
            continue
        *before, last = log
        left_out = {"history": before, "visible": before[-n:], "none": []}[evaluate.exclude]
        target, seen = (
            int(dataset.events.item[last]),
            {int(dataset.events.item[e]) for e in left_out},
        )
        rank = sum(count[x] >= count[target] for x in range(1, 8) if x not in seen)
        ranks.append(np.inf if target in seen else rank)
    return metrics.rank_means(np.array(ranks))


@pytest.mark.parametrize("split", ["leave_one_out", "time"])
@pytest.mark.parametrize("exclude", ["history", "visible", "none"])
@pytest.mark.parametrize("loss", [LossConfig(), LIKED], ids=["every event", "liked"])
def test_popularity_is_judged_on_the_users_and_by_the_protocol_of_the_model(loss, exclude, split):
    run = run_of(random_dataset(1, users=40, events=14), loss)
    run = dataclasses.replace(
        run,
        config=dataclasses.replace(
            run.config, evaluate=EvaluateConfig(split, exclude=exclude, batch_users=8)
        ),
    )
    found = retrieval.Retrieval(run).baselines(lambda stage: None)
    assert list(found) == ["popularity", "Markov", "item-kNN", "EASE"]
    expected = popularity_by_user(run)
    assert {name: found["popularity"][name] for name in expected} == expected
