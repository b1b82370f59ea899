from pathlib import Path

import jax.numpy as jnp
import numpy as np

from gr_jax.data.dataset import Catalogue, Dataset, Events
from gr_jax.reporting import learned
from gr_jax.serving.answer import Answer, Item
from gr_jax.serving.history import Event
from gr_jax.serving.model import TrainedModel
from pallas_kernels import time_bucket


def test_the_time_bias_has_the_buckets_that_times_of_the_log_fall_into():
    table = np.arange(129, dtype=np.float32)
    blocks = {
        0: {"bias": {"time": table, "position": np.zeros(4)}},
        1: {"bias": {"time": -table, "position": np.ones(4)}},
    }
    bias = learned.bias_of({"blocks": blocks}, span=3600)
    assert bias.time is not None and bias.position is not None
    expected = np.unique(np.asarray(time_bucket(jnp.arange(3601))))
    np.testing.assert_array_equal(bias.time, [expected, -expected])
    np.testing.assert_array_equal(time_bucket(jnp.asarray(bias.seconds)), expected)
    np.testing.assert_array_equal(bias.position, [[0] * 4, [1] * 4])


def test_models_without_relative_bias_have_no_curves():
    for params in ({"embeddings": {}}, {"blocks": {0: {"query": {}}}}):
        bias = learned.bias_of(params, span=10)
        assert bias.position is None and bias.time is None


def test_a_sample_is_the_list_that_is_served():
    asked = {}

    class Model(TrainedModel):
        tasks = ()

        def __init__(self):
            none = np.zeros(1, np.int32)
            events = Events(np.arange(2), none, none.astype(np.int64))
            self.dataset = Dataset(Untitled(), events)

        def history(self, raw):
            return [Event(item, 10 * i, ()) for i, item in enumerate("aba")]

        def recommend(self, past, k, **options):
            asked.update(options)
            return Answer((Item("c", None, 0.9), Item("a", None, 0.8)), "model", 0)

    sample = learned._sample(Model(), 0)
    assert sample.hit == 1 and asked == {"at_time": 20, "user": "u"}


class Untitled(Catalogue):
    """Of one user, without titles."""

    def __init__(self):
        pass

    def raw_users(self, users):
        return ["u"]

    def item_ids(self, raw):
        return np.zeros(len(raw), np.int32)

    def titles(self, ids):
        return [None] * len(ids)


def test_the_users_shown_have_short_middling_and_long_histories():
    counts = np.array([2, 9, 5, 3, 7, 4])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    none = np.zeros(offsets[-1], np.int32)
    events = Events(offsets, none, none.astype(np.int64))
    dataset = Dataset(Catalogue(Path("."), {"items": 1}), events)
    assert counts[learned.typical_users(dataset)].tolist() == [4, 5, 7]
