"""Fields of the training: optimizer and schedule."""

from __future__ import annotations

import typing
from dataclasses import dataclass

from gr_jax.config.checks import check, check_at_least, check_choice, check_types


@typing.no_type_check
@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, with the settings of the paper's public code, and the rule of the embedding tables."""

    learning_rate: float = 1e-3  # constant after the warm-up
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.98  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    # decoupled, on every parameter; with a row-wise rule on the table entries of a step
    weight_decay: float = 0.0
    warmup_steps: int = 0  # steps of linear warm-up from 0
    # items and features: dense = as the rest | rowwise_adamw | rowwise_adagrad: entries of a step
    table: str = "dense"
    table_learning_rate: float = 0.0  # of row-wise tables; 0 = learning_rate
    # of row-wise tables: float32 | bfloat16, updated with stochastic rounding
    table_dtype: str = "float32"

    def __post_init__(self):
        check_types(self, "optimizer.")
        for name in ("learning_rate", "eps"):
            value = getattr(self, name)
            check(value > 0, f"optimizer.{name}", value, "positive")
        for name in ("b1", "b2"):
            value = getattr(self, name)
            check(0 <= value < 1, f"optimizer.{name}", value, "in [0, 1)")
        check_at_least(0, self, "optimizer.", "weight_decay", "warmup_steps")
        self._check_table()

    def _check_table(self) -> None:
        rate, dtype = self.table_learning_rate, self.table_dtype
        check_choice("optimizer.table", self.table, ("dense", "rowwise_adamw", "rowwise_adagrad"))
        check_at_least(0, self, "optimizer.", "table_learning_rate")
        check_choice("optimizer.table_dtype", dtype, ("float32", "bfloat16"))
        if self.table == "dense":
            rule = "with optimizer.table=rowwise_adamw or rowwise_adagrad only"
            check(rate == 0, "optimizer.table_learning_rate", rate, rule)
            check(dtype == "float32", "optimizer.table_dtype", dtype, f"{rule}; else float32")


@typing.no_type_check
@dataclass(frozen=True)
class TrainConfig:
    """Length of the training and how often it reports, validates and saves."""

    # epochs: shuffled passes | streaming: once in the order of time, each window tested first
    mode: str = "epochs"
    # workdir of an earlier run, whose best parameters are the first of this one; "" = none
    init_from: str = ""
    # streaming: windows of equally many events in the part of the log that trains
    windows: int = 20
    # streaming: seconds without an event that end a session and emit an example; not of dlrm
    session_gap: int = 3600
    # streaming: keep an example of n events with probability rate / n; 0 = all; not of dlrm
    sampling_rate: float = 0.0
    epochs: int = 101  # passes over the users
    steps: int = 0  # stop after this many steps; 0 = after `epochs`
    batch_users: int = 128  # mean users in a global batch; the rows of a batch follow from it
    log_every: int = 10  # steps between console and metrics lines
    validate_every: int = 1  # epochs between validations
    # validations without a better NDCG@10 before stopping, half as many with init_from; 0 = never
    patience: int = 10
    checkpoint_every: int = 500  # steps between checkpoints, besides the one after each validation
    # where metrics go besides metrics.jsonl, of tensorboard (if it is installed), wandb and mlflow
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self):
        check_types(self, "train.")
        check_choice("train.mode", self.mode, ("epochs", "streaming"))
        for tracker in self.trackers:
            check_choice("train.trackers", tracker, ("tensorboard", "wandb", "mlflow"))
        check_at_least(1, self, "train.", "windows", "session_gap", "epochs", "batch_users")
        check_at_least(1, self, "train.", "log_every", "validate_every", "checkpoint_every")
        check_at_least(0, self, "train.", "steps", "patience", "sampling_rate")
