"""AdamW with optional linear warm-up, for all parameters or for all but the embedding tables."""

from __future__ import annotations

import optax

from gr_jax.config import OptimizerConfig
from gr_jax.training.tables.rowwise import RULES, Optimizer, RowwiseOptimizer


def make_optimizer(config: OptimizerConfig) -> Optimizer:
    """The paper's optimizer: AdamW with betas (0.9, 0.98), constant learning rate, no clipping.

    With `config.table` other than "dense", tables follow a rule that changes only the entries of a
    batch.
    """
    rate = learning_rate(config, config.learning_rate)
    dense = optax.adamw(
        rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
    )
    if config.table == "dense":
        return dense
    table_rate = learning_rate(config, config.table_learning_rate or config.learning_rate)
    return RowwiseOptimizer(dense, RULES[config.table](config), table_rate, config.weight_decay)


def learning_rate(config: OptimizerConfig, rate: float) -> optax.ScalarOrSchedule:
    """`rate` after the warm-up of `config`."""
    return optax.linear_schedule(0.0, rate, config.warmup_steps) if config.warmup_steps else rate
