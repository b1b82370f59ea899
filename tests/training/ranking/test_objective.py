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
from gr_jax.data.batches.batch import WHOLE
from gr_jax.data.batches.loader import read_batches
from gr_jax.data.batches.tokenizer import token_scheme
from gr_jax.models.flops import train_flops
from gr_jax.models.recommender import functional
from gr_jax.training import sharding
from gr_jax.training.optimizer import make_optimizer
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
    graphdef, init = functional(
        config.model,
        num_items=dataset.num_items,
        max_length=scheme.max_tokens(config.data.max_length),
        num_actions=2,
        num_feature_values=dataset.catalogue.num_feature_values,
        num_tasks=2,
    )
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
        device_multiple=mesh.size,
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
            state, metrics = step(state, batch, jax.random.key(1))
            values.append(float(metrics["loss"]))
        losses.append(values)
        results.append(objective.evaluate(state.params, "test"))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=1e-3, err_msg=name)


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
