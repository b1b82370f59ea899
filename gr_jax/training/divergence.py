"""Whether training is still finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gr_jax.training import sharding


class Diverged(ValueError):
    """A loss or parameter is not finite; nothing was saved since the last checkpoint."""

    def __init__(self, step: int, what: str):
        remedy = "try a lower config.optimizer.learning_rate in another --workdir"
        super().__init__(f"step {step}: {what}; the last checkpoint is from before it; {remedy}")


def check_finite(step: int, params: dict) -> None:
    """Raises `Diverged` if a parameter is not finite; the gradients of a finite loss need not be."""
    for path, ok in jax.tree_util.tree_leaves_with_path(all_finite(params)):
        if not ok:
            raise Diverged(step, f"{sharding.path_name(path)} is not finite")


@jax.jit
def all_finite(params: dict) -> dict:
    """Of each array, whether all its elements are finite."""
    return jax.tree.map(lambda array: jnp.isfinite(array).all(), params)
