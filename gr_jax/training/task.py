"""What a run is about, as the training loop sees it: its batches, its step, and how its parameters are judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gr_jax.config import ModelConfig
from gr_jax.data.batches.epochs import TrainBatches, TrainPlan
from gr_jax.data.batches.sequences import Split
from gr_jax.models.flops import block_flops


@dataclass(frozen=True)
class Batches:
    """The batches of a training run, and what an average one costs."""

    plan: TrainPlan
    epochs: int  # passes, or windows of a stream
    users_per_step: float  # sequences or impressions in a batch
    tokens_per_step: float  # real tokens in it
    fill: float  # real tokens per token computed
    flops_per_step: float  # of the model's mathematics, forward and backward
    about: tuple[str, ...]  # lines for the console


@dataclass(frozen=True)
class Task:
    """Retrieval or ranking."""

    batches: Callable[[], Batches]
    train_step: Callable[[], Callable]  # makes (state, batch, key) -> (state, {"loss": ..})
    evaluate: Callable[[dict, Split], dict[str, float]]  # (params, split) -> metrics
    # (params, epochs done) -> metrics, None = nothing left
    validate: Callable[[dict, int], dict[str, float] | None]
    # of a validation, epochs done; the highest is the best
    score: Callable[[dict[str, float] | None, int], float]
    # a name and its metrics on the test split, to compare with
    baseline: Callable[[], tuple[str, dict[str, float]]]
    shown: tuple[str, ...]  # metrics of the final table
    headline: tuple[str, ...]  # metrics of a console line


def shards_line(plan: TrainPlan, model: ModelConfig) -> tuple[str, ...]:
    """The console line on how even the work of data shards is by `block_flops`; none for one shard, nor for a stream.

    Padding costs what a token costs in the linear layers and nothing in attention.
    """
    if not isinstance(plan, TrainBatches) or plan.shards == 1:
        return ()
    per_token, per_pair = block_flops(model)
    before, after = plan.imbalance(token_cost=per_token, pair_cost=per_pair)
    return (
        f"shards  {plan.shards}, the busiest with {after:.3f} of the mean work ({before:.3f} before balancing)",
    )
