"""The ranking head: a token's vector -> one logit per task."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gr_jax.models.layers import Linear


class RankingHead(nnx.Module):
    """Linear -> SiLU -> Linear, the "small neural network" of Zhai et al. 2024, section 2.2; all tasks share the first.

    Attributes:
      hidden: [D, head width]. output: [head width, Y].
    """

    def __init__(self, width: int, hidden_width: int, num_tasks: int, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.xavier_uniform()
        self.hidden = Linear(width, hidden_width, kernel_init=init, rngs=rngs)
        self.output = Linear(hidden_width, num_tasks, kernel_init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "*T D"]) -> Float[Array, "*T Y"]:
        """Logits in float32; the hidden layer is computed in the dtype of x."""
        return self.output(jax.nn.silu(self.hidden(x)).astype(jnp.float32))
