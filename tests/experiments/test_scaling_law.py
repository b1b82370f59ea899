import numpy as np
import pytest

from experiments import scaling_law


def point(flops: float, value: float) -> dict:
    return {"flops": flops, "value": value}


def test_the_frontier_leaves_out_what_another_beats_with_fewer_flops():
    points = [point(3, 0.5), point(1, 0.9), point(2, 0.6), point(2.5, 0.7), point(4, 0.5), point(5, 0.4)]
    assert [p["flops"] for p in scaling_law.frontier(points)] == [1, 2, 3, 5]


def test_the_fit_finds_the_line_and_its_uncertainty():
    rng = np.random.default_rng(0)
    flops = np.geomspace(1e9, 1e14, 200)
    exact = 0.55 - 0.02 * np.log(flops / 1e15)
    found = scaling_law.fit([point(c, v) for c, v in zip(flops, exact + 0.01 * rng.normal(size=200), strict=True)])
    assert found["b"] == pytest.approx(-0.02, abs=3 * found["b_se"])
    assert found["a"] == pytest.approx(0.55, abs=3 * found["a_se"])
    assert 0 < found["b_se"] < 0.001 and 0.9 < found["r2"] < 1
