"""The dispatcher: defaults, names and wrong calls."""

import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import hstu_attention

Q = jnp.ones((1, 4, 2, 3))
SEGMENTS = jnp.ones((1, 4), jnp.int32)


def test_the_default_implementation_runs_here():
    out = hstu_attention(Q, Q, Q[..., :2], SEGMENTS, max_length=4)
    assert out.shape == (1, 4, 2, 2)
    np.testing.assert_allclose(
        out, hstu_attention(Q, Q, Q[..., :2], SEGMENTS, max_length=4, implementation="reference")
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"implementation": "cuda"},
            "implementation='cuda': must be None or one of reference, xla",
        ),
        ({"max_length": 0}, "max_length=0"),
        ({"window": 0}, "window=0"),
        ({"time_table": jnp.ones(129)}, "query_times and key_times"),
        (
            {"time_table": jnp.ones(0), "query_times": SEGMENTS, "key_times": SEGMENTS},
            "time_table is empty",
        ),
        ({"position_table": jnp.ones(0)}, "position_table is empty"),
    ],
)
def test_a_wrong_argument_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        hstu_attention(Q, Q, Q, SEGMENTS, **{"max_length": 4, **wrong})


def test_every_name_is_exported():
    assert all(hasattr(pallas_kernels, name) for name in pallas_kernels.__all__)
