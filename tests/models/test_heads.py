import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gr_jax.models.heads import RankingHead


def test_head_is_two_affine_maps_with_silu_between_and_float32_logits():
    head = RankingHead(6, 10, 3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 6))
    w1, b1, w2, b2 = (
        np.asarray(a[...], np.float64)
        for m in (head.hidden, head.output)
        for a in (m.kernel, m.bias)
    )
    hidden = np.asarray(x, np.float64) @ w1 + b1
    expected = hidden / (1 + np.exp(-hidden)) @ w2 + b2
    np.testing.assert_allclose(head(x), expected, atol=1e-5)
    close = head(x.astype(jnp.bfloat16))
    assert close.dtype == jnp.float32
    np.testing.assert_allclose(close, expected, atol=0.05)
