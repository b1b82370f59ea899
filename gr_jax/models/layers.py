"""Layers that the models share: normalisation, dropout, affine map and SwiGLU."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gr_jax.models.noise import Key, random_bits, split

NORM_EPS = 1e-6  # of HSTU and SwiGLU


def widen(x: Float[Array, "*T"]) -> Float[Array, "*T"]:
    """x in float32, or in float64 if it is so already."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def layer_norm(x: Float[Array, "*T D"], eps: float) -> Float[Array, "*T D"]:
    """(x - mean) / sqrt(variance + eps) along the last axis, without learnt scale or shift.

    Computed in float32 or wider; the result has the dtype of x.
    """
    wide = widen(x)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps)).astype(x.dtype)


def l2_normalise(x: Float[Array, "*T D"], eps: float = 1e-6) -> Float[Array, "*T D"]:
    """x / max(|x|, eps) along the last axis, in float32 or wider.

    The gradient at x = 0 is finite.
    """
    wide = widen(x)
    squared = jnp.square(wide).sum(-1, keepdims=True)
    return wide * jax.lax.rsqrt(jnp.maximum(squared, eps * eps))


def dropout(x: Float[Array, "*T"], rate: float, key: Key | None) -> Float[Array, "*T"]:
    """Zero elements with probability `rate` and rescale the rest; the identity without `key`.

    One random byte decides an element, a quarter of the bits of a float threshold; so `rate` is
    rounded to the nearest 1/256.
    """
    kept = 256 - round(rate * 256)
    if key is None or kept == 256:
        return x
    keep = random_bits(key, x.shape, jnp.uint8) < kept
    return jnp.where(keep, x * (256 / kept), jnp.zeros_like(x))


def split_key(key: Key | None, n: int) -> list[Key] | list[None]:
    """`n` keys from one, or `n` times None without a key."""
    return [None] * n if key is None else split(key, n)


class Linear(nnx.Module):
    """y @ kernel + bias.

    The bias starts uniform in +-1/sqrt(fan_in), as torch's: zeros cost many training steps.
    """

    def __init__(self, fan_in: int, fan_out: int, *, kernel_init: nnx.Initializer, rngs: nnx.Rngs):
        bound = 1 / math.sqrt(fan_in)
        self.kernel = nnx.Param(kernel_init(rngs.params(), (fan_in, fan_out)))
        self.bias = nnx.Param(
            jax.random.uniform(rngs.params(), (fan_out,), minval=-bound, maxval=bound)
        )

    def __call__(self, y: Float[Array, "*T F"]) -> Float[Array, "*T G"]:
        """The affine map, computed in the dtype of y."""
        return y @ self.kernel.astype(y.dtype) + self.bias.astype(y.dtype)


class Swiglu(nnx.Module):
    """x + W_down (SiLU(W_gate LN(x)) * W_up LN(x)), token by token (arXiv:2002.05202).

    HSTU as published has no such layer. The backward pass recomputes the hidden values.

    Attributes:
      gate: [D, F], of D = `width` and F = `hidden`. up: [D, F]. down: [F, D].
    """

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        normal, xavier = jax.nn.initializers.normal(0.02), jax.nn.initializers.xavier_uniform()
        self.gate = nnx.Param(normal(rngs.params(), (width, hidden)))
        self.up = nnx.Param(normal(rngs.params(), (width, hidden)))
        self.down = nnx.Param(xavier(rngs.params(), (hidden, width)))

    def __call__(
        self, x: Float[Array, "R L D"], *, rate: float = 0.0, key: Key | None = None
    ) -> Float[Array, "R L D"]:
        """x plus the layer's output, in the dtype of x; with `key`, dropout of hidden values."""
        gate, up, down = (weight.astype(x.dtype) for weight in (self.gate, self.up, self.down))
        return _swiglu(rate, x, gate, up, down, key)


def _plain_swiglu(rate, x, gate, up, down, key):
    normed = layer_norm(x, NORM_EPS)
    return x + dropout(jax.nn.silu(normed @ gate) * (normed @ up), rate, key) @ down


def _swiglu_forward(rate, *args):
    return _plain_swiglu(rate, *args), args


def _swiglu_backward(rate, args, d_out):
    *floats, key = args
    # Without the barrier the compiler keeps the hidden values of the forward pass.
    floats, d_out = jax.lax.optimization_barrier((floats, d_out))
    function = lambda x, gate, up, down: _plain_swiglu(rate, x, gate, up, down, key)
    _, backward = jax.vjp(function, *floats)
    return *backward(d_out), None


_swiglu = jax.custom_vjp(_plain_swiglu, nondiff_argnums=(0,))
_swiglu.defvjp(_swiglu_forward, _swiglu_backward)
