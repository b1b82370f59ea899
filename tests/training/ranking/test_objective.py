"""Ranking on meshes: the same training and the same predictions on one device and on eight."""

import dataclasses

import jax
import numpy as np
import pytest

from gr_jax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    MeshConfig,
    ModelConfig,
    RankingConfig,
    TrainConfig,
)
from gr_jax.data.batches import impressions
from gr_jax.data.batches.batch import WHOLE
from gr_jax.data.batches.loader import read_batches
from gr_jax.data.batches.tokenizer import outcomes, token_scheme
from gr_jax.models.flops import train_flops
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from gr_jax.training import console, sharding
from gr_jax.training.checkpoint import Progress
from gr_jax.training.optimizer import make_optimizer
from gr_jax.training.ranking import metrics
from gr_jax.training.ranking.objective import Ranking
from gr_jax.training.run import Run
from tests.data.batches.ranking_log import random_dataset

CONFIG = Config(
    data=DataConfig(max_length=8, row_length=24, actions=("watched=1", "liked=1"), max_series=2),
    model=ModelConfig(
        width=16,
        num_blocks=1,
        qk_width=8,
        v_width=8,
        head_width=8,
        hidden_widths=(16,),
        cross_layers=1,
    ),
    ranking=RankingConfig(tasks=("liked", "rating")),
    train=TrainConfig(batch_users=24),
    evaluate=EvaluateConfig(batch_users=24),
)


def open_run(kind: str, devices: int, tmp_path, mode: str = "epochs") -> Run:
    """A run on a log in memory."""
    model, train = (
        dataclasses.replace(CONFIG.model, kind=kind),
        dataclasses.replace(CONFIG.train, mode=mode, windows=3),
    )
    config = dataclasses.replace(CONFIG, model=model, train=train, mesh=MeshConfig(data=devices))
    dataset = random_dataset(0, users=60, events=20)
    scheme = token_scheme(config, dataset)
    graphdef, init = make_model(config.model, ModelSizes.of(config, dataset, scheme))
    mesh, optimizer = sharding.make_mesh(config.mesh), make_optimizer(config.optimizer)
    return Run(
        config,
        tmp_path,
        dataset,
        scheme,
        mesh,
        graphdef,
        init,
        optimizer,
    )


@pytest.mark.parametrize("kind", ["hstu", "dlrm"])
def test_one_and_eight_devices_train_and_judge_alike(kind, tmp_path):
    losses, results = [], []
    for devices in (1, 8):
        run = open_run(kind, devices, tmp_path)
        objective = Ranking(run)
        plan = Ranking(open_run(kind, 8, tmp_path)).plan  # for eight devices: the same on both
        state, shardings = run.fresh_state()
        out = shardings, sharding.replicated(run.mesh)
        step = sharding.on_mesh(
            run.mesh, jax.jit(objective.make_step(), donate_argnums=0, out_shardings=out)
        )
        values = []
        for batch in read_batches(plan, 0, 6):
            batch = sharding.put(batch, sharding.batch_sharding(run.mesh))
            state, told = step(state, batch, jax.random.key(1))
            values.append(float(told["loss"]))
        losses.append(values)
        results.append(objective.evaluate(state.params, "test"))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=1e-3, err_msg=name)


def test_labels_of_one_class_are_told_once_and_another_error_picks_the_best(tmp_path):
    run = open_run("dlrm", 1, tmp_path)
    action = run.dataset.events.action
    assert action is not None
    action &= ~2  # nobody likes anything
    run = dataclasses.replace(
        run, config=dataclasses.replace(run.config, ranking=RankingConfig(tasks=("liked",)))
    )
    objective = Ranking(run)
    notes = [line for line in objective.about if line.startswith("note")]
    assert len(notes) == 2 and all("liked: all " in line for line in notes), notes
    assert "labels are 0 in the valid part, so NE and AUC are undefined" in notes[0]

    low, high = objective._bounds["valid"]
    event = impressions.events_between(run.dataset.events, low, high)
    outcome, known = outcomes(run.dataset.events, run.dataset.catalogue, event, ("liked",))
    user, history = np.zeros_like(event), np.zeros_like(event)
    near, far = (
        metrics.summarise(
            np.full(outcome.shape, p), outcome, known, user, history, ("liked",), (False,)
        )
        for p in (0.1, 0.4)
    )
    assert "ne" not in near and objective.score(near, 1) > objective.score(far, 2)
    progress = Progress().after_validation(1, objective.score(near, 1))
    assert progress.after_validation(2, objective.score(far, 2)).best_step == 1
    line = console.valid_line(2, 1.0, near, objective, is_best=True)
    assert "log_loss/liked 0.1054  best" in line
    shown = console.metrics_table({"valid": near, "test": far, "rate": far}, objective.shown)
    assert len(shown.splitlines()) == 3 and "0.5108" in shown
    assert "undefined/liked" in near


@pytest.mark.parametrize("mode", ["epochs", "streaming"])
def test_the_cost_of_impressions_is_that_of_the_events_there_are_before_each(mode, tmp_path):
    run = open_run("dlrm", 1, tmp_path, mode)
    objective = Ranking(run)
    plan, cost = objective.plan, objective.cost
    steps = plan.first_step(objective.epochs if mode == "streaming" else 1)
    batches = [plan.batch(step, WHOLE) for step in range(steps)]
    real = np.concatenate([batch.item > 0 for batch in batches])
    before = np.concatenate([(batch.history_item > 0).sum(1) for batch in batches])
    assert 0 < before.sum() < before[real].size * run.config.data.max_length
    assert cost.users == real.sum() / steps
    assert cost.tokens == before.sum() / steps
    assert cost.fill == pytest.approx(before.sum() / (real.size * run.config.data.max_length))
    expected = train_flops(run.config, before[real], num_items=run.dataset.num_items) / steps
    assert cost.flops == pytest.approx(expected)
