"""AdamW with optional linear warm-up."""

from __future__ import annotations

import optax

from gr_jax.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The paper's optimizer: AdamW with betas (0.9, 0.98), constant learning rate, no clipping."""
    rate: optax.ScalarOrSchedule = config.learning_rate
    if config.warmup_steps:
        rate = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.adamw(rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay)
