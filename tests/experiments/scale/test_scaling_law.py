import numpy as np
import pytest

from experiments.scale import scaling_law


def point(flops: float, value: float) -> dict:
    return {"flops": flops, "value": value}


def test_the_frontier_leaves_out_what_another_beats_with_fewer_flops():
    points = [
        point(3, 0.5),
        point(1, 0.9),
        point(2, 0.6),
        point(2.5, 0.7),
        point(4, 0.5),
        point(5, 0.4),
    ]
    assert [p["flops"] for p in scaling_law.frontier(points)] == [1, 2, 3, 5]


def test_the_fit_finds_the_law_and_its_uncertainty():
    rng = np.random.default_rng(0)
    flops = np.geomspace(1e10, 1e14, 200)
    noisy = scaling_law.law(flops, 0.4, 0.02, 0.3) + 0.005 * rng.normal(size=200)
    found = scaling_law.fit([point(c, v) for c, v in zip(flops, noisy, strict=True)])
    for name, true in (("least", 0.4), ("k", 0.02), ("b", 0.3)):
        assert found[name] == pytest.approx(true, abs=3 * found[f"{name}_se"])
    assert 0 < found["b_se"] < 0.03 and found["r2"] > 0.95
