"""The tail of ranking: a token's vector -> one logit per task -> predictions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from gr_jax.models.layers import Linear, widen


class RankingHead(nnx.Module):
    """Linear -> SiLU -> Linear, the "small neural network" of Zhai et al. 2024, section 2.2.

    All tasks share the first layer.

    Attributes:
      hidden: [D, head width]. output: [head width, Y].
    """

    def __init__(self, width: int, hidden_width: int, num_tasks: int, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.xavier_uniform()
        self.hidden = Linear(width, hidden_width, kernel_init=init, rngs=rngs)
        self.output = Linear(hidden_width, num_tasks, kernel_init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "*T D"]) -> Float[Array, "*T Y"]:
        """Logits in float32 or wider; the hidden layer is computed in the dtype of x."""
        return self.output(widen(jax.nn.silu(self.hidden(x))))


def are_regressions(tasks: tuple[str, ...]) -> tuple[bool, ...]:
    """True for each task that predicts a number instead of a probability."""
    return tuple(task == "rating" for task in tasks)


def predictions(logits: Float[Array, "*T Y"], tasks: tuple[str, ...]) -> Float[Array, "*T Y"]:
    """The probability of each task, or the number itself where the task is a regression."""
    return jnp.where(np.array(are_regressions(tasks)), logits, jax.nn.sigmoid(logits))
