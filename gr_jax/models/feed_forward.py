"""A feed-forward layer after the attention of a block, which HSTU as published does without."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from gr_jax.models.layers import dropout, layer_norm

NORM_EPS = 1e-6


class Swiglu(nnx.Module):
    """x + W_down (SiLU(W_gate LN(x)) * W_up LN(x)), token by token; its hidden values are made again for the gradients.

    Source: SwiGLU, arXiv:2002.05202.

    Attributes:
      gate: [D, F], of D = `width` and F = `hidden`. up: [D, F]. down: [F, D].
    """

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        normal, xavier = jax.nn.initializers.normal(0.02), jax.nn.initializers.xavier_uniform()
        self.gate = nnx.Param(normal(rngs.params(), (width, hidden)))
        self.up = nnx.Param(normal(rngs.params(), (width, hidden)))
        self.down = nnx.Param(xavier(rngs.params(), (hidden, width)))

    def __call__(
        self, x: Float[Array, "R L D"], *, rate: float = 0.0, key: PRNGKeyArray | None = None
    ) -> Float[Array, "R L D"]:
        """x plus the layer's output, in the dtype of x; dropout of the hidden values at `rate` when `key` is given."""
        gate, up, down = (weight.astype(x.dtype) for weight in (self.gate, self.up, self.down))
        return _swiglu(rate, x, gate, up, down, key)


def _forward(rate, x, gate, up, down, key):
    normed = layer_norm(x, NORM_EPS)
    return x + dropout(jax.nn.silu(normed @ gate) * (normed @ up), rate, key) @ down


def _forward_rule(rate, *args):
    return _forward(rate, *args), args


def _backward_rule(rate, args, d_out):
    *floats, key = args
    # Else the compiler keeps the hidden values of the forward pass, which are the same.
    floats, d_out = jax.lax.optimization_barrier((floats, d_out))
    _, backward = jax.vjp(lambda x, gate, up, down: _forward(rate, x, gate, up, down, key), *floats)
    return *backward(d_out), None


_swiglu = jax.custom_vjp(_forward, nondiff_argnums=(0,))
_swiglu.defvjp(_forward_rule, _backward_rule)
