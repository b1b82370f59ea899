"""Pieces shared by all encoders: normalisation, dropout, the affine map."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray


def layer_norm(x: Float[Array, "*T D"], eps: float) -> Float[Array, "*T D"]:
    """(x - mean) / sqrt(variance + eps) along the last axis, without learnt scale or shift; float32 inside."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps)).astype(x.dtype)


def l2_normalise(x: Float[Array, "*T D"], eps: float = 1e-6) -> Float[Array, "*T D"]:
    """x / max(|x|, eps) along the last axis, in float32; the gradient at x = 0 is finite."""
    x32 = x.astype(jnp.float32)
    squared = jnp.square(x32).sum(-1, keepdims=True)
    return x32 * jax.lax.rsqrt(jnp.maximum(squared, eps * eps))


def dropout(x: Float[Array, "*T"], rate: float, key: PRNGKeyArray | None) -> Float[Array, "*T"]:
    """Zeroes elements with probability `rate` (to the nearest 1/256) and rescales the rest; identity without `key`.

    One random byte decides an element: a quarter of the random bits that a float threshold costs.
    """
    kept = 256 - round(rate * 256)
    if key is None or kept == 256:
        return x
    keep = jax.random.bits(key, x.shape, jnp.uint8) < kept
    return jnp.where(keep, x * (256 / kept), jnp.zeros_like(x))


def split(key: PRNGKeyArray | None, n: int) -> list[PRNGKeyArray] | list[None]:
    """`n` keys from one, or `n` times None when there is no dropout."""
    return [None] * n if key is None else list(jax.random.split(key, n))


class Linear(nnx.Module):
    """y @ kernel + bias; the bias starts uniform in +-1/sqrt(fan_in), as torch's: zeros cost many training steps."""

    def __init__(self, fan_in: int, fan_out: int, *, kernel_init: nnx.Initializer, rngs: nnx.Rngs):
        bound = 1 / math.sqrt(fan_in)
        self.kernel = nnx.Param(kernel_init(rngs.params(), (fan_in, fan_out)))
        self.bias = nnx.Param(
            jax.random.uniform(rngs.params(), (fan_out,), minval=-bound, maxval=bound)
        )

    def __call__(self, y: Float[Array, "*T F"]) -> Float[Array, "*T G"]:
        """The affine map, computed in the dtype of y."""
        return y @ self.kernel.astype(y.dtype) + self.bias.astype(y.dtype)
