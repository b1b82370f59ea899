"""The loss of ranking, by task."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def ranking_loss(
    logits: Float[Array, "*T Y"],
    outcome: Float[Array, "*T Y"],
    outcome_weight: Float[Array, "*T Y"],
    *,
    is_regression: tuple[bool, ...],
    weights: tuple[float, ...] = (),
) -> tuple[Float[Array, ""], dict[str, Float[Array, " Y"]]]:
    """Sum over tasks of weight times mean loss, in float32.

    Each mean is over the labels of its own task.

    A binary task has the cross-entropy of sigmoid(logit) in nats, a regression task the squared
    error of the logit. A task without a label has loss 0 and no gradient. Where `outcome_weight` is
    0 nothing counts, not even a NaN.

    Args:
      logits: predictions.
      outcome: 0 or 1, or the value to predict.
      outcome_weight: 1 = the outcome is a label, 0 = it is not; other values weight the mean.
      is_regression: one flag for each task.
      weights: one number for each task; () = 1 each.

    Returns:
      The loss, and by task `task_loss` (not weighted) and `labels`, the sum of the weights of its
      labels.

    Raises:
      ValueError: flags or weights of another number of tasks.
    """
    tasks = logits.shape[-1]
    for name, values in (("is_regression", is_regression), ("weights", weights or (1.0,) * tasks)):
        if len(values) != tasks:
            raise ValueError(f"{name}={values}: must have one entry for each of the {tasks} tasks")
    has_label = outcome_weight > 0
    logits = jnp.where(has_label, logits, 0).astype(jnp.float32)
    outcome = jnp.where(has_label, outcome, 0)
    squared = jnp.square(logits - outcome)
    # The entropy of a value that is no probability is meaningless, but finite: its gradient is
    # masked away.
    losses = jnp.where(
        jnp.array(is_regression), squared, optax.sigmoid_binary_cross_entropy(logits, outcome)
    )
    over_labels = tuple(range(logits.ndim - 1))
    labels = jnp.sum(outcome_weight, axis=over_labels, dtype=jnp.float32)
    task_loss = jnp.sum(outcome_weight * losses, axis=over_labels) / jnp.where(
        labels > 0, labels, 1
    )
    loss = jnp.sum(jnp.array(weights or 1.0, jnp.float32) * task_loss)
    return loss, {"task_loss": task_loss, "labels": labels}
