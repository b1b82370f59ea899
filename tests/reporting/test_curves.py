import numpy as np

from gr_jax.reporting import curves


def test_a_long_curve_is_thinned_to_means_that_keep_its_mean():
    steps = np.arange(4000.0)
    x, y = curves.thinned((steps, steps**2))
    assert len(x) == curves.MAX_POINTS
    np.testing.assert_allclose([x.mean(), y.mean()], [steps.mean(), (steps**2).mean()])
    assert x[0] == 4.5 and y[0] == np.mean(np.arange(10.0) ** 2)


def test_a_short_curve_is_left_alone():
    points = np.arange(5.0), np.ones(5)
    assert curves.thinned(points) is points
