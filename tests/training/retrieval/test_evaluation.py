import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from gr_jax.config import Config, DataConfig, EvaluateConfig, MeshConfig, ModelConfig
from gr_jax.data.batches.batch import Batch
from gr_jax.data.batches.evaluation import evaluation_batches
from gr_jax.data.dataset import Dataset
from gr_jax.models.recommender import make_model
from gr_jax.models.sizes import ModelSizes
from gr_jax.training import sharding
from gr_jax.training.retrieval import evaluation, metrics
from tests.training.random_log import random_log

ITEMS = 60


def make_log() -> Dataset:
    """Histories with repeats, some longer than the model sees."""
    rng = np.random.default_rng(3)
    return random_log(rng, counts=rng.integers(3, 30, 40), num_items=ITEMS)


def brute_force(
    model, dataset: Dataset, config: Config, held_out: int
) -> tuple[dict[str, float], list]:
    """Metrics and the best items user by user, unpacked, ranking with numpy."""
    ranks, log_probs, history, best = [], [], [], []
    table = np.asarray(model.embeddings.item_table[...], np.float64)[1 : ITEMS + 1]
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    encode = jax.jit(model.encode)
    n = config.data.max_length
    for first, end in zip(dataset.events.offsets[:-1], dataset.events.offsets[1:], strict=True):
        target_at = end - held_out
        events = np.arange(max(first, target_at - n), target_at)
        pad = n - len(events)
        times = dataset.events.timestamp - dataset.events.timestamp[events[0]]
        fields = {
            "item": dataset.events.item[events],
            "time": times[events],
            "query_time": times[events + 1],
            "position": np.arange(len(events)),
            "segment": np.ones(len(events)),
            "label": np.zeros(len(events)),
        }
        batch = Batch(**{k: np.pad(v, (0, pad)).astype(np.int32)[None] for k, v in fields.items()})
        query = np.asarray(encode(batch), np.float64)[0, len(events) - 1]
        logits = table @ query / config.model.temperature
        target = dataset.events.item[target_at] - 1
        history.append(target_at - first)
        removed = {
            "history": dataset.events.item[first:target_at],
            "visible": dataset.events.item[events],
            "none": [],
        }
        ranked = np.ones(ITEMS, bool)
        ranked[np.asarray(removed[config.evaluate.exclude], int) - 1] = False
        rank = (ranked & (logits >= logits[target])).sum()
        ranks.append(rank if ranked[target] else np.inf)
        best.append(
            (np.argsort(-np.where(ranked, logits, -np.inf), kind="stable")[:10] + 1).tolist()
        )
        log_probs.append(logits[target] - np.log(np.exp(logits).sum()))
    return metrics.summarise(np.array(ranks), np.array(log_probs), np.array(history)), best


@pytest.mark.parametrize("exclude", ["history", "visible", "none"])
@pytest.mark.parametrize(("split", "held_out"), [("valid", 2), ("test", 1)])
def test_packed_evaluation_equals_a_ranking_user_by_user(exclude, split, held_out):
    dataset = make_log()
    config = Config(
        data=DataConfig(max_length=12, row_length=24),
        model=ModelConfig(width=16, qk_width=8, v_width=8),
        evaluate=EvaluateConfig(exclude=exclude, batch_users=10, chunk_items=32),
        mesh=MeshConfig(data=2),
    )
    graphdef, init = make_model(config.model, ModelSizes(num_items=ITEMS, max_length=12))
    params = init(jax.random.key(0))
    mesh = sharding.make_mesh(config.mesh)
    user_ranks = evaluation.make_user_ranks(graphdef, config, num_items=ITEMS, mesh=mesh)
    rows = evaluation_batches(dataset, config.data, config.evaluate, split, device_multiple=2)
    assert len(rows) > 2
    placed = jax.device_put(params, sharding.replicated(mesh))
    found = user_ranks(placed, rows, with_best=True)
    ours = metrics.summarise(found.rank, found.log_prob, found.history)
    one_device = dataclasses.replace(config, mesh=MeshConfig(data=1))
    expected, best = brute_force(nnx.merge(graphdef, params), dataset, one_device, held_out)
    assert ours == pytest.approx(expected, abs=1e-5)
    assert found.best.tolist() == [best[user] for user in found.user]
    assert (ours["repeats"] > 0.05) == (exclude != "none")
