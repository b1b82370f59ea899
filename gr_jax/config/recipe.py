"""A config for a log that nobody has tuned for, by rules from its size, lengths and repeats.

Widths, batches and losses are those of configs/ml_1m.py and configs/amazon.py, whose results are
measured; the settings of small logs did best on validation (experiments/quality/small_logs.py).
Beyond five million events the rules are guesses.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from gr_jax.config.config import Config
from gr_jax.config.data import DataConfig
from gr_jax.config.model import ModelConfig
from gr_jax.config.objective import EvaluateConfig, LossConfig
from gr_jax.config.train import OptimizerConfig, TrainConfig

FULL_SOFTMAX = 50_000  # items up to which a step compares with all of them
LITTLE = 2_000  # events below which a model may well learn less than the baselines count
SMALL = 300_000  # events up to which a model has to be held back from learning them by heart
EPOCHS = 400  # at most; patience ends a training
SPARSE = 50  # and events an item
KNN_RANK = 64  # of the item-kNN that is added; on small logs 256 was no better
MANY_REPEATS = 0.1  # share of events from which repeats are ranked


class LogFacts(NamedTuple):
    """What the rules look at."""

    users: int
    items: int
    events: int
    long_history: int  # events of a user who has more than 95 of 100 others
    repeats: float  # share of events whose item the user had before


class Choice(NamedTuple):
    """A config, and why it is as it is: a line for each choice."""

    config: Config
    reasons: tuple[str, ...]


def choose(data: DataConfig, log: LogFacts) -> Choice:
    """The config for a log.

    Args:
      data: where it is and how it is read; the lengths of histories are chosen here.
      log: what it holds.
    """
    history = min(200, max(50, -(-log.long_history // 10) * 10))
    row = max(64, 1 << (history - 1).bit_length())
    width, blocks = (128, 4) if log.events > 5_000_000 else (64, 2)
    temperature = 0.05 if log.events > SMALL else 0.1 if log.events > 30_000 else 0.2
    sparse = log.events < SMALL or log.events < SPARSE * log.items
    dropout = 0.5 if sparse else 0.2
    full = log.items <= FULL_SOFTMAX
    smoothing = 0.0 if not full or log.events > SMALL else 0.1 if log.events > 30_000 else 0.2
    exclude = "none" if log.repeats > MANY_REPEATS else "history"
    batch = 128 if log.users <= 100_000 else 512
    steps = max(1, log.users // batch)
    validate_every = max(1, -(-40 // steps))
    rowwise = log.items > 500_000

    config = Config(
        data=dataclasses.replace(data, max_length=history, row_length=row),
        model=ModelConfig(
            width=width,
            num_blocks=blocks,
            num_heads=1,
            qk_width=width,
            v_width=width,
            input_dropout=dropout,
            dropout=dropout,
            knn_rank=0 if rowwise else KNN_RANK,
            temperature=temperature,
        ),
        loss=LossConfig(smoothing=smoothing)
        if full
        else LossConfig(kind="group", negatives=512, group=32),
        optimizer=OptimizerConfig(table="rowwise_adamw" if rowwise else "dense"),
        train=TrainConfig(
            epochs=EPOCHS, batch_users=batch, validate_every=validate_every, patience=8
        ),
        evaluate=EvaluateConfig(exclude=exclude, valid_users=10_000 if log.users > 50_000 else 0),
    )
    against = "all items" if full else "512 random items for 32 neighbouring events"
    reasons = (
        f"histories of {history} events: 95 % of the users have at most {log.long_history:,}",
        f"{blocks} blocks of width {width}, temperature {temperature}: {log.events:,} events",
        f"dropouts of {dropout}, label smoothing {smoothing}: {log.events / log.items:,.0f} events"
        " an item",
        f"each next item is compared with {against}: {log.items:,} items",
        "scores of item-kNN are added with the weight that is best on validation"
        if not rowwise
        else f"no item-kNN is added: {log.items:,} items",
        f"items that a user had before are {'ranked too' if exclude == 'none' else 'left out'}:"
        f" {log.repeats:.1%} of the events are repeats",
        f"up to {EPOCHS} epochs, ended by 8 validations without a better one",
    )
    if log.events < LITTLE:
        told = f"{log.events:,} events are few for a model: look at the baselines in the table"
        reasons = (*reasons, told)
    return Choice(config, reasons)
