"""Item-kNN as vectors: its scores, cut to a rank."""

import numpy as np
import pytest

from gr_jax.baselines import item_knn, knn_vectors
from gr_jax.baselines.questions import Questions
from gr_jax.baselines.training_events import user_items
from gr_jax.config import ConfigError
from gr_jax.data.batches.splits import TrainingLog


def log_of(users=30, items=12, seed=0):
    rng = np.random.default_rng(seed)
    length = rng.integers(2, 9, users)
    item = rng.integers(1, items + 1, length.sum()).astype(np.int32)
    return TrainingLog(np.concatenate([[0], np.cumsum(length)]), item, items)


@pytest.mark.parametrize("dense", [1000, 0])
def test_at_full_rank_their_product_is_the_score_of_item_knn(dense, monkeypatch):
    monkeypatch.setattr(knn_vectors, "DENSE", dense)
    log = log_of()
    (table,) = item_knn.similarities(user_items(log), (knn_vectors.SHRINKAGE,))
    begin, end = log.offsets[:-1], log.offsets[1:] - 1
    asked = Questions(log.item, begin, begin, end, log.num_items)
    wanted = item_knn.scores(table, knn_vectors.RECENCY).dense(asked)

    found = knn_vectors.learn(log, 12 if dense else 10)  # of 12 items; the sparse one finds fewer
    scores = found.queries(log.item, begin, end) @ found.items.T
    np.testing.assert_allclose(scores, wanted, atol=1e-5 if dense else 0.05)
    heavier = knn_vectors.KnnVectors(found.read, found.items, 3.0)
    np.testing.assert_allclose(
        heavier.queries(log.item, begin, end) @ found.items.T, 3 * scores, atol=1e-5
    )


def test_a_lower_rank_is_the_nearest_table_of_that_rank():
    log = log_of()
    (table,) = item_knn.similarities(user_items(log), (knn_vectors.SHRINKAGE,))
    found = knn_vectors.learn(log, 3)
    assert found.read.shape == found.items.shape == (13, 3)
    values = np.linalg.svd(table.toarray(), compute_uv=False)
    error = np.linalg.norm(found.read @ found.items.T - table.toarray())
    assert error == pytest.approx(np.linalg.norm(values[3:]), rel=1e-4)


def test_users_of_one_item_each_tell_nothing():
    log = TrainingLog(np.arange(6), np.arange(1, 6, dtype=np.int32), 5)
    found = knn_vectors.learn(log, 4)
    scores = found.queries(log.item, np.arange(4), np.arange(1, 5)) @ found.items.T
    assert not scores.any()


def test_they_are_kept_in_the_workdir_and_damage_is_told(tmp_path):
    assert knn_vectors.read(tmp_path, 12) is None
    learnt = knn_vectors.learn(log_of(), 3)
    knn_vectors.write(knn_vectors.KnnVectors(learnt.read, learnt.items, 20.0), tmp_path)
    again = knn_vectors.read(tmp_path, 12)
    assert again is not None and again.weight == 20
    np.testing.assert_array_equal(again.items, learnt.items)
    with pytest.raises(ConfigError, match="of another catalogue"):
        knn_vectors.read(tmp_path, 13)
    path = tmp_path / knn_vectors.FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="knn_vectors.npz: damaged.*train again"):
        knn_vectors.read(tmp_path, 12)
