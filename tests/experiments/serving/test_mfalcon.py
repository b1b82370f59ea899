"""The arithmetic behind the cost table of M-FALCON."""

import numpy as np

from experiments.serving import mfalcon
from gr_jax.config import Config, ModelConfig
from gr_jax.models.flops import train_flops

MODEL = ModelConfig(width=256, num_blocks=8, num_heads=4, qk_width=64, v_width=64)


def test_the_floors_are_those_that_the_docstring_states():
    cached, encode = mfalcon.peek_flops(MODEL, 1024, 1024), mfalcon.encode_flops(MODEL, 1024)
    naive = 1024 * mfalcon.encode_flops(MODEL, 1025)
    assert [round(x / 1e9, 1) for x in (cached, encode, cached + encode)] == [14.0, 9.7, 23.6]
    assert (round(naive / (cached + encode)), round(naive / cached)) == (419, 710)


def test_the_floors_count_as_the_training_speed_does():
    config = Config(model=MODEL)
    whole = train_flops(config, np.array([100]), num_items=0, candidates=np.array([7])) / 3
    assert mfalcon.encode_flops(MODEL, 100) + mfalcon.peek_flops(MODEL, 100, 7) == whole


def test_the_fit_finds_a_line_and_leaves_out_less_than_a_micro_batch():
    rows = [
        dict(n=8, b=16, m=m, cached_ms=0.5 * m + 3, cold_ms=0.5 * m + 10) for m in (16, 64, 256)
    ]
    rows.append(dict(n=8, b=16, m=1, cached_ms=11.0, cold_ms=18.0))
    cached, cold = mfalcon.linear_fits(rows)
    for fit, intercept in ((cached, 3), (cold, 10)):
        np.testing.assert_allclose((fit["ms_per_candidate"], fit["intercept_ms"]), (0.5, intercept))
        assert fit["worst_relative_error"] < 1e-9
