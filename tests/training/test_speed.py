from types import SimpleNamespace

import numpy as np
import pytest

from gr_jax.config import Config, DataConfig, LossConfig, ModelConfig, RankingConfig
from gr_jax.planning.devices import DEVICES
from gr_jax.training import speed


def test_flops_of_a_sequence_equal_a_hand_count():
    config = Config(
        model=ModelConfig(width=4, num_blocks=1, num_heads=2, qk_width=3, v_width=5, swiglu_width=7),
        loss=LossConfig(kind="full"),
    )
    tokens, pairs = 3, 6  # a token sees itself and what is before it
    projections = 2 * 4 * (10 + 10 + 6 + 6) + 2 * 10 * 4 + 3 * 2 * 4 * 7
    attention = 2 * (6 + 10)
    scores = 2 * 4 * 100
    expected = 3 * (tokens * projections + pairs * attention + tokens * scores)
    assert speed.train_flops(config, np.array([3]), num_items=100) == expected


RANKING = dict(data=DataConfig(actions=("watched=1", "liked=rating>=4")), ranking=RankingConfig(tasks=("liked",)))


def test_flops_of_ranking_count_the_head_and_candidates_that_see_the_history_and_themselves():
    config = Config(
        model=ModelConfig(width=4, num_blocks=1, num_heads=2, qk_width=3, v_width=5, head_width=7), **RANKING
    )
    tokens, pairs = 3 + 2 + 1, 6 + 2 * 4 + 1
    projections = 2 * 4 * (10 + 10 + 6 + 6) + 2 * 10 * 4
    head = 2 * 4 * 7 + 2 * 7
    expected = 3 * (tokens * (projections + head) + pairs * 2 * (6 + 10))
    got = speed.train_flops(config, np.array([3, 1]), num_items=100, candidates=np.array([2, 0]))
    assert got == expected


def test_flops_of_impressions_equal_a_hand_count():
    config = Config(model=ModelConfig(kind="dlrm", width=4, cross_layers=2, hidden_widths=(6, 5)), **RANKING)
    per_event = 2 * (4 * 36 + 4 * 36 + 36) + 2 * 4
    w = 4 * 4 + 1 + 2
    per_impression = 2 * (4 * 36 + 2 * w * w + w * 6 + 6 * 5 + w + 5)
    expected = 3 * (10 * per_event + 2 * per_impression)
    assert speed.train_flops(config, np.array([3, 7]), num_items=100) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_of_training_is_the_one_that_a_plan_divides_by(dtype, monkeypatch):
    gpus = [SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")] * 4
    monkeypatch.setattr(speed.jax, "devices", lambda: gpus)
    monkeypatch.setattr(speed.jax, "device_count", lambda: len(gpus))
    assert speed.peak_flops(dtype) == 4 * DEVICES["h100"].flops(dtype)


def test_the_meter_leaves_out_compilation_and_pauses(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(speed, "peak_flops", {"float32": 1000.0}.__getitem__)
    meter = speed.SpeedMeter(users_per_step=4.0, tokens_per_step=40.0, flops_per_step=100.0, compute_dtype="float32")
    assert not meter.has_news
    now[0] = 60.0  # compiling
    meter.add([3.0])
    now[0] = 61.0
    meter.add([2.0])
    meter.pause()
    now[0] = 100.0  # validating
    meter.resume()
    now[0] = 101.0
    meter.add([1.0])
    values = meter.report()
    assert values["loss"] == 2.0
    assert values["step_ms"] == pytest.approx(1000)
    assert values["users_per_second"] == pytest.approx(4)
    assert values["tokens_per_second"] == pytest.approx(40)
    assert values["mfu"] == pytest.approx(0.1)
    assert not meter.has_news
